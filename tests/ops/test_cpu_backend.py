"""The compiled kernels against the reference, and how they live with threads, processes and folders."""

import itertools
import os
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from ops_cases import random_boxes
from torch.profiler import ProfilerActivity, profile

from detpool import ops
from detpool.ops.backends import BackendError

# float16 and bfloat16 results are those of float32, rounded; sums of gradients reach some tens
TOLERANCE = {
    torch.float64: {"atol": 1e-11, "rtol": 1e-11},
    torch.float32: {"atol": 1e-4, "rtol": 1e-4},
    torch.bfloat16: {"atol": 5e-2, "rtol": 2e-2},
    torch.float16: {"atol": 5e-3, "rtol": 2e-3},
}


def strided(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.transpose(2, 3).contiguous().transpose(2, 3) if layout == "strided" else tensor


def rotate(boxes: torch.Tensor) -> torch.Tensor:
    size = (boxes[:, 3:] - boxes[:, 1:3]).clamp(max=100)
    angle = torch.linspace(-200, 200, len(boxes), dtype=boxes.dtype)[:, None]
    return torch.cat([boxes[:, :1], (boxes[:, 1:3] + boxes[:, 3:]) / 2, size, angle], dim=1)


BINS = (4, 3)
POOLS = {
    # name: (channels per output channel, function of features, RoIs, offsets and backend)
    "points": (1, lambda f, b, o, k: ops.roi_align(f, b, BINS, 1 / 8, 2, True, backend=k)),
    "adaptive points": (1, lambda f, b, o, k: ops.roi_align(f, b, BINS, 1 / 8, backend=k)),
    "integral, groups": (12, lambda f, b, o, k: ops.pr_roi_pool(f, b, BINS, 1 / 8, position_sensitive=True, backend=k)),
    "cells, groups": (12, lambda f, b, o, k: ops.ps_roi_pool(f, b, BINS, 1 / 8, backend=k)),
    "deformable": (1, lambda f, b, o, k: ops.deform_roi_pool(f, b, o, BINS, 1 / 8, 2, backend=k)),
    "deformable, groups": (12, lambda f, b, o, k: ops.deform_ps_roi_pool(f, b, o, BINS, 1 / 8, backend=k)),
    "rotated": (1, lambda f, b, o, k: ops.roi_align_rotated(f, rotate(b), BINS, 1 / 8, 2, backend=k)),
    "maximum of cells": (1, lambda f, b, o, k: ops.roi_pool(f, b, BINS, 1 / 8, backend=k)),
    "maximum of cells, groups": (
        12,
        lambda f, b, o, k: ops.pool(
            f,
            b,
            BINS,
            1 / 8,
            bins="rfcn",
            sampling="cells",
            channels="position_sensitive",
            reduction="max",
            backend=k,
        ),
    ),
    "maximum of points": (1, lambda f, b, o, k: ops.roi_align(f, b, BINS, 1 / 8, 0, reduction="max", backend=k)),
    "maximum of points, groups": (
        12,
        lambda f, b, o, k: ops.ps_roi_align(f, b, BINS, 1 / 8, 2, reduction="max", backend=k),
    ),
}


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("contiguous", torch.float64),
        ("channels_last", torch.float32),
        ("strided", torch.float32),
        ("channels_last", torch.bfloat16),
        ("contiguous", torch.float16),
    ],
)
@pytest.mark.parametrize("name", POOLS)
def test_equals_the_reference(name: str, layout: str, dtype: torch.dtype) -> None:
    """Output and gradients of features, boxes and offsets; of odd numbers of channels, more than a register holds."""
    torch.manual_seed(0)
    channels, function = POOLS[name]
    source = torch.randn(3, (3 if "rotated" in name else 37) * channels, 9, 11).to(dtype)
    boxes = random_boxes(41, (72, 88), 3, seed=0)
    # not where a point lies on a cell or an edge on a pixel: there a gradient has two sides
    boxes[:, 1:] += torch.tensor([0.013, 0.017, 0.031, 0.029])
    boxes = boxes.to(torch.float64 if dtype == torch.float64 else torch.float32)
    results = {}
    for backend in ("reference", "cpu"):
        features = strided(source, layout).detach().requires_grad_()
        coords, offsets = boxes.clone().requires_grad_(), torch.linspace(-2, 2, 984).view(41, 2, *BINS).requires_grad_()
        output = function(features, coords, offsets, backend)
        cotangent = torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype)
        inputs = (features, coords, offsets)
        results[backend] = (output, *torch.autograd.grad(output, inputs, cotangent, allow_unused=True))
        with torch.no_grad():  # which saves maxima their places
            assert torch.equal(function(features, coords, offsets, backend), output)
    for part, expected, got in zip(("output", "features", "boxes", "offsets"), *results.values(), strict=True):
        if expected is None:
            assert got is None, f"{part}: the reference has no gradient"
            continue
        # boxes and offsets sum over channels and bins
        scale = 1 if part in ("output", "features") else float(expected.abs().max().clamp(min=1))
        torch.testing.assert_close(got / scale, expected / scale, **TOLERANCE[dtype], msg=lambda m, n=part: f"{n}: {m}")
        assert got.stride() == expected.stride() or part != "output"


@pytest.mark.parametrize("name", ["maximum of cells", "maximum of points"])
def test_maxima_of_infinite_and_missing_values_and_ties_equal_the_reference(name: str) -> None:
    torch.manual_seed(0)
    source = torch.randn(3, 5, 9, 11)
    source.view(-1)[::50] = torch.nan
    source.view(-1)[::7] = -torch.inf
    source.view(-1)[::11] = 0.5  # ties
    boxes, results = random_boxes(41, (72, 88), 3, seed=0), []
    for backend in ("reference", "cpu"):
        features = source.clone().requires_grad_()
        output = POOLS[name][1](features, boxes, None, backend)
        cotangent = torch.linspace(-1, 1, output.numel()).view(output.shape).where(output.isfinite(), 0.0)
        results.append((output.detach(), torch.autograd.grad(output, features, cotangent)[0]))
        without = POOLS[name][1](source, boxes, None, backend)
        torch.testing.assert_close(without, output.detach(), atol=0, rtol=0, equal_nan=True)
    # the order of a sum of four decides between NaN and infinity only
    exact = {"atol": 0, "rtol": 0} if "cells" in name else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(results[1][0], results[0][0], equal_nan=True, **exact)
    torch.testing.assert_close(results[1][1], results[0][1], equal_nan=True, **TOLERANCE[torch.float32])


def test_a_pyramid_at_once_equals_its_maps_one_by_one() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 24, 40 // s, 52 // s) for s in (1, 2, 4)]
    boxes, levels = random_boxes(60, (160, 208), 2, seed=0), torch.arange(60) % 3
    for backend in ("cpu", "reference"):
        for function in (ops.roi_align, ops.roi_pool, ops.ps_roi_pool, ops.pr_roi_pool, ops.spp):
            size = [1, 2] if function is ops.spp else 2
            leaves = [m.clone().requires_grad_() for m in maps]
            scales = [1 / 4, 1 / 8, 1 / 16]
            got = function(leaves, ops.PyramidRoIs(boxes, levels), size, scales, backend=backend)
            got.square().sum().backward()
            for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
                features = features.clone().requires_grad_()
                expected = function(features, boxes[levels == level], size, scale, backend=backend)
                torch.testing.assert_close(got[levels == level], expected)
                expected.square().sum().backward()
                torch.testing.assert_close(leaves[level].grad, features.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_do_not_depend_on_the_number_of_threads(layout: str) -> None:
    torch.manual_seed(0)
    source = strided(torch.randn(2, 90, 20, 25), layout)
    boxes = random_boxes(200, (160, 200), 2, seed=0)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            features, coords = source.clone().requires_grad_(), boxes.clone().requires_grad_()
            sums = ops.pr_roi_pool(features, coords, 3, 1 / 8), ops.ps_roi_pool(features, boxes, 3, 1 / 8)
            maximum = ops.roi_pool(features, boxes, 3, 1 / 8)
            (sum(t.square().sum() for t in sums) + maximum.square().sum()).backward()
            results.append((*sums, maximum, features.grad, coords.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_more_than_2_to_the_31_elements() -> None:
    """Only the pages that the box touches come into memory."""
    height, width, channels = 1 << 12, 1 << 12, 136
    try:
        pixels = np.zeros((1, height, width, channels), np.float32)
    except MemoryError:
        pytest.skip("this machine does not promise 9 GB of untouched memory")
    assert pixels.size > 2**31
    pixels[0, -3:, -3:] = np.arange(channels)
    features = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    box = torch.tensor([[0.0, width - 3, height - 3, width - 1, height - 1]])
    expected = torch.arange(channels, dtype=torch.float32).view(1, -1, 1, 1).expand(1, -1, 2, 2)
    torch.testing.assert_close(ops.roi_align(features, box, 2, 1.0, 2, backend="cpu"), expected)
    torch.testing.assert_close(ops.roi_pool(features, box, 2, backend="cpu"), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("operator", [ops.roi_pool, ops.roi_align, ops.pr_roi_pool, ops.ps_roi_pool])
def test_peak_memory_of_forward_and_backward(operator, layout: torch.memory_format) -> None:
    """At most twice the output and one copy of the features, beyond what the caller holds."""
    torch.manual_seed(0)
    channels = 21 * 49 if operator is ops.ps_roi_pool else 256
    features = torch.randn(2, channels, 50, 76).contiguous(memory_format=layout).requires_grad_()
    sides = 32 * (500 / 32) ** torch.rand(512, 2)  # pixels, of an image of 800 x 1216
    corner = torch.rand(512, 2) * (torch.tensor([1216, 800]) - sides)
    boxes = torch.cat([torch.randint(0, 2, (512, 1)), corner, corner + sides], dim=1)
    arguments = (2,) if operator is ops.roi_align else ()
    output = operator(features, boxes, 7, 1 / 16, *arguments)
    grad = torch.randn_like(output)
    output.backward(grad)  # compiles, which takes memory of its own
    del output
    features.grad = None
    # PyTorch tells the profiler what it allocates, NumPy tracemalloc; their peaks need not come together
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        tracemalloc.start()
        output = operator(features, boxes, 7, 1 / 16, *arguments)
        output.backward(grad)
        numpy_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert peak >= output.nbytes + features.nbytes  # output and gradient, or the record is not complete
    assert peak + numpy_peak <= 2 * output.nbytes + features.nbytes


def test_one_roi_takes_few_calls_of_python_functions() -> None:
    """Each costs about a microsecond, and where there is one RoI they are most of the time. Kernels are not counted."""
    features, box = torch.randn(1, 8, 20, 20), torch.tensor([[0.0, 3, 4, 15, 16]])
    called = []

    def count(frame, event, arg) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(Path(ops.__file__).parent) and not file.stem.endswith("kernels"):
            called.append(frame.f_code.co_name)

    ops.roi_align(features, box, (7, 7), 1.0, 2)  # compiles
    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        ops.roi_align(features, box, (7, 7), 1.0, 2)
    finally:
        sys.setprofile(previous)
    assert "roi_align" in called
    assert len(called) <= 25, ", ".join(called)


def run_python(code: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **environment},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def test_importing_the_operators_starts_and_compiles_nothing() -> None:
    run_python(
        """
        import sys, threading
        import detpool.ops
        assert "numba" not in sys.modules and "torch._dynamo" not in sys.modules
        assert threading.active_count() == 1
        """
    )


def test_works_in_forked_loader_workers_after_use_in_the_parent() -> None:
    run_python(
        """
        import torch
        from detpool import ops
        torch.set_num_threads(2)
        boxes = torch.rand(200, 2) * 50
        boxes = torch.cat([torch.zeros(200, 1), boxes, boxes + 40], 1)

        class Pooled(torch.utils.data.Dataset):
            def __len__(self): return 6
            def __getitem__(self, i):
                torch.set_num_threads(2)  # a worker has one thread unless someone asks for more
                features = torch.full((1, 8, 30, 30), float(i), requires_grad=True)
                out = ops.roi_align(features, boxes, 3, 0.25, 2)
                out.sum().backward()
                return out.mean().detach()

        expected = [Pooled()[i] for i in range(6)]
        loader = torch.utils.data.DataLoader(Pooled(), batch_size=None, num_workers=2, multiprocessing_context="fork")
        assert list(loader) == expected
        """
    )


def test_several_threads_may_call_at_once() -> None:
    run_python(
        """
        import threading
        import torch
        from detpool import ops
        torch.set_num_threads(2)
        torch.manual_seed(0)
        features = torch.randn(1, 64, 30, 30)
        boxes = torch.rand(200, 2) * 50
        boxes = torch.cat([torch.zeros(200, 1), boxes, boxes + 40], 1)
        expected = ops.roi_align(features, boxes, 3, 0.25, 2)
        wrong = []

        def call():
            for _ in range(20):
                if not torch.equal(ops.roi_align(features, boxes, 3, 0.25, 2), expected):
                    wrong.append(1)

        threads = [threading.Thread(target=call) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not wrong
        """
    )


SMALL_CALL = """
    import torch
    from detpool import ops
    out = ops.roi_align(torch.ones(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]]), 2, backend="cpu")
    assert torch.equal(out, torch.ones(1, 2, 2, 2))
"""


def test_several_processes_may_compile_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(SMALL_CALL)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors[-2000:]
    assert list(tmp_path.rglob("*.nbi")), "nothing was cached"
    run_python(SMALL_CALL, NUMBA_CACHE_DIR=str(tmp_path))


def test_compiles_without_a_folder_to_cache_in(tmp_path: Path) -> None:
    """numba tries the folder of the source, then the user's; here it finds neither."""
    code = """
        import numba.core.caching as caching
        implementation = getattr(caching, "CacheImpl", None) or caching._CacheImpl
        assert implementation._locator_classes
        implementation._locator_classes = []
    """
    run_python(code + textwrap.indent(textwrap.dedent(SMALL_CALL), " " * 8))


def test_a_backend_asked_for_and_refused_says_why() -> None:
    features = torch.zeros(1, 2, 4, 4, dtype=torch.float8_e4m3fn)
    with pytest.raises(BackendError) as error:
        ops.roi_pool(features, torch.tensor([[0.0, 0, 0, 2, 2]]), 2, backend="cpu")
    message = str(error.value)
    for part in ("'cpu'", "window_max", "(1, 2, 4, 4)", "float8", "cpu: dtype", "reference: could serve"):
        assert part in message


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="'cpu', 'reference', got 'gpu'"):
        ops.roi_pool(torch.zeros(1, 2, 4, 4), torch.zeros(0, 5), 2, backend="gpu")
