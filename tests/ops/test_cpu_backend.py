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
from detpool.ops.axes import Taps
from detpool.ops.backends import BackendError
from detpool.ops.separable import separable_sum
from detpool.ops.window_max import window_max

# float16 and bfloat16 results are those of float32, rounded; sums of gradients reach some tens
TOLERANCE = {
    torch.float64: {"atol": 1e-11, "rtol": 1e-11},
    torch.float32: {"atol": 1e-4, "rtol": 1e-4},
    torch.bfloat16: {"atol": 5e-2, "rtol": 2e-2},
    torch.float16: {"atol": 5e-3, "rtol": 2e-3},
}


def random_taps(rois: int, bins: tuple[int, int], lengths: tuple[int, int], joint: bool, dtype: torch.dtype):
    """Taps of any kind: absent ones, repeated cells, more of them along one axis."""
    shapes = [(*bins, 5), (*bins, 3)] if joint else [(bins[0], 1, 5), (1, bins[1], 3)]
    taps = []
    for shape, length in zip(shapes, lengths, strict=True):
        index = torch.randint(-1, length, (rois, *shape), dtype=torch.int32)
        weight = torch.randn(index.shape, dtype=dtype).where(index >= 0, 0.0)
        taps.append((index, weight))
    return taps


def strided(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.transpose(2, 3).contiguous().transpose(2, 3) if layout == "strided" else tensor


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("groups", "joint"), [((1, 1), False), ((1, 1), True), ((2, 3), False), ((2, 3), True)])
def test_separable_sum_equals_the_reference(groups, joint: bool, layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    channels = 3 if groups == (1, 1) and joint else 37  # fewer and more than a register holds
    source = torch.randn(3, channels * groups[0] * groups[1], 5, 9).to(dtype)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    (iy, wy), (ix, wx) = random_taps(41, (4, 3), (5, 9), joint, weights)
    batch = torch.randint(0, 3, (41,))
    results = {}
    for backend in ("reference", "cpu"):
        features = strided(source, layout).detach().requires_grad_()
        y, x = Taps(iy, wy.clone().requires_grad_()), Taps(ix, wx.clone().requires_grad_())
        output = separable_sum(features, batch, y, x, groups=groups, backend=backend)
        cotangent = torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype)
        results[backend] = (output, *torch.autograd.grad(output, (features, y.weight, x.weight), cotangent))
    for name, expected, got in zip(("output", "features", "wy", "wx"), *results.values(), strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE[dtype], msg=lambda m, n=name: f"{n}: {m}")
        assert got.stride() == expected.stride() or name != "output"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("groups", [(1, 1), (2, 3)])
def test_window_maximum_equals_the_reference(groups, layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source = torch.randn(3, 37 * groups[0] * groups[1], 5, 9).to(dtype)
    source.view(-1)[::50] = torch.nan
    source.view(-1)[::7] = -torch.inf
    source.view(-1)[::11] = 0.5  # ties
    windows = [torch.randint(0, n + 1, (41, p, 2), dtype=torch.int32).sort(-1).values for n, p in ((5, 4), (9, 3))]
    batch = torch.randint(0, 3, (41,))
    results = {}
    for backend in ("reference", "cpu"):
        features = strided(source, layout).detach().requires_grad_()
        output = window_max(features, batch, *windows, groups=groups, backend=backend)
        cotangent = torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype)
        results[backend] = (output.detach(), *torch.autograd.grad(output, features, cotangent))
    torch.testing.assert_close(results["cpu"][0], results["reference"][0], atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(results["cpu"][1], results["reference"][1], **TOLERANCE[dtype])


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
    grad = torch.randn_like(operator(features, boxes, 7, 1 / 16, *arguments).detach())
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


def run_python(code: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=240,
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
        _, errors = process.communicate(timeout=240)
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
