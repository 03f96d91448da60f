"""The Triton kernels on a GPU: python -m pytest -m gpu

With TRITON_INTERPRET=1 and no GPU the same tests run on the CPU, fewer and smaller: so they are known to work before
they meet a GPU.
"""

import contextlib
import functools
import os
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor

from detpool import ops
from detpool.ops.backends.triton import primitives

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA or ROCm device"),
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")

SCALE = 1 / 16
HEIGHT, WIDTH = (3, 4) if INTERPRETED else (25, 38)
BINS = 2 if INTERPRETED else 7
ROIS = 2 if INTERPRETED else 200


def offsets_of(boxes: Tensor) -> Tensor:
    """Offsets that move every bin of every box, the same in every call."""
    offsets = torch.linspace(-2, 2, boxes.shape[0] * 2 * BINS**2, dtype=torch.float32)
    return offsets.view(-1, 2, BINS, BINS).to(boxes.device)


OPERATORS = {
    "roi_pool": (1, ops.roi_pool),
    "roi_align": (1, functools.partial(ops.roi_align, sampling_ratio=2)),
    "roi_align adaptive": (1, functools.partial(ops.roi_align, aligned=True)),
    "roi_warp": (1, functools.partial(ops.roi_warp, sampling_ratio=2)),
    "ps_roi_pool": (BINS**2, ops.ps_roi_pool),
    "ps_roi_pool rfcn": (BINS**2, functools.partial(ops.ps_roi_pool, convention="rfcn")),
    "ps_roi_align": (BINS**2, functools.partial(ops.ps_roi_align, sampling_ratio=2)),
    "pr_roi_pool": (1, ops.pr_roi_pool),
    "deform_roi_pool": (1, lambda f, b, *a, **k: ops.deform_roi_pool(f, b, offsets_of(b), *a, **k)),
    "deform_ps_roi_pool": (BINS**2, lambda f, b, *a, **k: ops.deform_ps_roi_pool(f, b, offsets_of(b), *a, **k)),
}
SOME = ["roi_pool", "pr_roi_pool", "ps_roi_align"] if INTERPRETED else list(OPERATORS)
TORCHVISIONS = ["roi_pool", "roi_align", "ps_roi_pool", "ps_roi_align"]
WITHOUT_BOX_GRADIENTS = {"roi_pool", "roi_warp", "ps_roi_pool", "ps_roi_pool rfcn", "deform_ps_roi_pool"}

# Of sums of products of numbers of order one, in float32 whatever the features' type; backward sums have tens of terms.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# the interpreter's float16 and bfloat16 atomics are not those of a GPU
DTYPES = [torch.float32] if INTERPRETED else list(TOLERANCE)
LAYOUTS = [torch.channels_last] if INTERPRETED else [torch.channels_last, torch.contiguous_format]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are inspected where the switch asks for it, and not because tensors are on a CPU."""
    monkeypatch.setattr(primitives, "checks_values", lambda device: os.environ.get("DETPOOL_CHECK_BOXES") == "1")


@pytest.fixture(params=["atomic", "deterministic"])
def either_form(request):
    torch.use_deterministic_algorithms(request.param == "deterministic")
    yield request.param
    torch.use_deterministic_algorithms(False)


def make_inputs(
    groups: int, dtype: torch.dtype, layout: torch.memory_format, rois: int = ROIS
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = 3 * groups if groups > 1 else 40
    features = torch.randn(2, channels, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    sides = 20 * HEIGHT * torch.rand(rois, 2, generator=generator, dtype=torch.float64)
    sides[::10] = 0
    corner = torch.rand(rois, 2, generator=generator, dtype=torch.float64) * 28 * HEIGHT - 4 * HEIGHT
    image = torch.randint(0, 2, (rois, 1), generator=generator)
    boxes = torch.cat([image, corner, corner + sides], dim=1)
    boxes_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return features.to(DEVICE, dtype).contiguous(memory_format=layout), boxes.to(DEVICE, boxes_dtype)


def run(operator, features: Tensor, boxes: Tensor, first: int = 0, **arguments) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, and gradients of features and boxes, of what RoIs from ``first`` on give."""
    features, boxes = features.detach().requires_grad_(), boxes.detach().requires_grad_()
    output = operator(features, boxes, BINS, SCALE, **arguments)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    weight[:first] = 0
    grads = torch.autograd.grad(output, (features, boxes), weight, allow_unused=True)
    return output.detach(), grads[0], grads[1]


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where something waits for the GPU."""
    if INTERPRETED:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number expected."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOME)
def test_equals_the_reference(name: str, dtype: torch.dtype, layout: torch.memory_format, either_form: str) -> None:
    groups, operator = OPERATORS[name]
    features, boxes = make_inputs(groups, dtype, layout)
    got = run(operator, features, boxes, backend="triton")
    expected = run(operator, features, boxes, backend="reference")
    assert error(got[0], expected[0]) <= TOLERANCE[dtype]
    assert error(got[1], expected[1]) <= TOLERANCE[dtype]
    if name not in WITHOUT_BOX_GRADIENTS:
        # pixels are a sixteenth of a cell, and a box sums the gradients of all bins and channels
        assert error(got[2], expected[2]) <= 10 * TOLERANCE[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["ps_roi_align"] if INTERPRETED else ["roi_align", "ps_roi_pool", "ps_roi_align"])
def test_copied_maps_equal_the_reference(
    name: str, dtype: torch.dtype, layout: torch.memory_format, either_form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large ones are, which would take long."""
    monkeypatch.setattr(primitives, "pays_to_copy", lambda *args: True)
    test_equals_the_reference(name, dtype, layout, either_form)


@pytest.mark.parametrize("name", ["roi_align"] if INTERPRETED else TORCHVISIONS)
def test_equals_torchvision(name: str) -> None:
    features, boxes = make_inputs(BINS**2 if name.startswith("ps") else 1, torch.float32, torch.contiguous_format)
    arguments = {"sampling_ratio": 2} if name.endswith("align") else {}
    got = getattr(ops, name)(features, boxes, BINS, SCALE, backend="triton", **arguments)
    expected = getattr(torchvision.ops, name)(features, boxes, BINS, SCALE, **arguments)
    expected = expected.nan_to_num()  # torchvision's ps_roi_align divides by no points where a box has no size
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_maximum_over_points_equals_the_reference() -> None:
    """Not in deterministic mode: PyTorch has no deterministic backward of max pooling on GPUs."""
    operator = functools.partial(ops.roi_align, sampling_ratio=2, reduction="max")
    features, boxes = make_inputs(1, torch.float32, torch.channels_last)
    got = run(operator, features, boxes, backend="triton")
    expected = run(operator, features, boxes, backend="reference")
    for a, b, factor in zip(got, expected, (1, 1, 10), strict=True):
        assert error(a, b) <= factor * TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", SOME)
def test_runs_are_equal_bit_for_bit(name: str) -> None:
    groups, operator = OPERATORS[name]
    features, boxes = make_inputs(groups, torch.float32, torch.channels_last)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (run(operator, features, boxes, backend="triton") for _ in range(2 if INTERPRETED else 20))
        for other in others:
            for a, b in zip(first, other, strict=True):
                assert a is b is None or torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", SOME)
def test_nothing_waits_for_the_gpu(name: str, either_form: str) -> None:
    groups, operator = OPERATORS[name]
    features, boxes = make_inputs(groups, torch.float32, torch.channels_last)
    features.requires_grad_()
    boxes.requires_grad_()
    operator(features, boxes, BINS, SCALE, backend="triton").sum().backward()  # compiles
    with no_waiting():
        operator(features, boxes, BINS, SCALE, backend="triton").sum().backward()


@needs_gpu
@pytest.mark.parametrize("name", SOME)
def test_memory_grows_with_rois_only(name: str, either_form: str) -> None:
    """Beyond features, output and gradients: a few numbers a bin, whatever the number of channels."""
    groups, operator = OPERATORS[name]
    spare = {}
    for rois in (500, 1000):
        features, boxes = make_inputs(groups, torch.float32, torch.channels_last, rois)
        run(operator, features, boxes, backend="triton")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output, grad, _ = run(operator, features, boxes, backend="triton")
        # the output, its weight, and for a maximum the positions
        known = 3 * output.nbytes + grad.nbytes
        spare[rois] = torch.cuda.max_memory_allocated() - before - known
    # deformable bins are (K, 7, 7, 2 axes, 4 numbers, and their gradients and PyTorch's intermediate results)
    assert spare[1000] <= 1000 * 49 * 4 * 64
    assert spare[1000] <= 2.2 * max(spare[500], 1 << 20)


@pytest.mark.parametrize("name", SOME)
def test_values_that_are_not_valid_give_nan_and_no_gradient(name: str, either_form: str) -> None:
    groups, operator = OPERATORS[name]
    features, boxes = make_inputs(groups, torch.float32, torch.channels_last, rois=10)
    wrong = boxes.clone()
    values = [(1, torch.nan), (2, torch.inf), (3, -torch.inf), (3, -1e4), (0, 2), (0, -1), (0, -0.5), (0, 1e9)]
    for row, (column, value) in enumerate(values):
        wrong[row, column] = value
    output, grad, grad_boxes = run(operator, features, wrong, backend="triton")
    assert output[:8].isnan().all()
    expected = run(operator, features, boxes, first=8, backend="triton")
    assert torch.equal(output[8:], expected[0][8:])
    torch.testing.assert_close(grad, expected[1])
    if name not in WITHOUT_BOX_GRADIENTS:
        torch.testing.assert_close(grad_boxes, expected[2])


def test_the_debug_switch_inspects_values(monkeypatch) -> None:
    monkeypatch.setenv("DETPOOL_CHECK_BOXES", "1")
    features, boxes = make_inputs(1, torch.float32, torch.channels_last, rois=2)
    boxes[1, 1] = torch.nan
    with pytest.raises(ValueError, match="boxes must be finite"):
        ops.roi_align(features, boxes, BINS, SCALE, backend="triton")


def test_autocast() -> None:
    features, boxes = make_inputs(1, torch.float32, torch.channels_last)
    with torch.autocast(DEVICE, torch.float16):
        half = torch.nn.functional.conv2d(features, torch.eye(40, device=DEVICE)[:, :, None, None])
        output = ops.roi_align(half, boxes, BINS, SCALE, 2, backend="triton")
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.float(), ops.roi_align(features, boxes, BINS, SCALE, 2), atol=1e-2, rtol=1e-2)


@needs_gpu
@pytest.mark.parametrize("name", ["roi_pool", "roi_align", "pr_roi_pool"])
def test_compiles_without_a_graph_break(name: str) -> None:
    operator = functools.partial(OPERATORS[name][1], output_size=BINS, spatial_scale=SCALE)
    features, boxes = make_inputs(1, torch.float32, torch.channels_last)
    compiled = torch.compile(operator, fullgraph=True)
    torch.testing.assert_close(compiled(features, boxes), operator(features, boxes))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_tensors_of_another_device_than_the_current_one() -> None:
    features, boxes = make_inputs(1, torch.float32, torch.channels_last)
    expected = ops.roi_align(features, boxes, BINS, SCALE, 2)
    got = ops.roi_align(features.to("cuda:1"), boxes.to("cuda:1"), BINS, SCALE, 2)
    assert got.device == torch.device("cuda:1")
    torch.testing.assert_close(got.cpu(), expected.cpu())
