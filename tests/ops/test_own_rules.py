"""Sampling rules of a user's own on the CPU backend: gradients through their taps, and what they should not read."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from detpool import ops
from detpool.ops import Bins, Taps, sampling
from detpool.ops.sampling import integral_taps, point_taps
from detpool.ops.spec import Spec


def whole_axis(bins: Bins, length: int, ratio: int) -> Taps:
    """The mean over all cells, whatever the bin."""
    index = torch.arange(length, dtype=torch.int32).expand(*bins.lower.shape, length)
    return Taps(index, torch.full(index.shape, 1 / length))


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    """Built-in rules by other names, which the backends do not know, and one that reads everything."""
    before = dict(sampling.SAMPLING)
    ops.register_sampling("my integral", ops.Sampling(taps=integral_taps, dtype=torch.float64))
    ops.register_sampling("my points", ops.Sampling(taps=point_taps))
    ops.register_sampling("whole axis", ops.Sampling(taps=whole_axis))
    yield
    sampling.SAMPLING.clear()
    sampling.SAMPLING.update(before)
    sampling._warned.clear()


@pytest.mark.parametrize("rule", ["my integral", "my points"])
@pytest.mark.parametrize("channels", ["shared", "position_sensitive"])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_features_boxes_and_offsets(
    rule: str, channels: str, moved: bool, pyramid: bool, dtype: torch.dtype
) -> None:
    """Oracle: PyTorch's own gradients of the reference backend."""
    generator = torch.Generator().manual_seed(0)
    last, first = torch.channels_last, torch.contiguous_format
    sizes = [(12, 14, last), (6, 7, first)] if pyramid else [(12, 14, first)]
    maps = [
        torch.randn(2, 12, height, width, dtype=dtype, generator=generator).contiguous(memory_format=layout)
        for height, width, layout in sizes
    ]
    corners = torch.rand(9, 2, dtype=dtype, generator=generator) * 80 - 10
    sides = torch.rand(9, 2, dtype=dtype, generator=generator) * 60
    image = torch.randint(0, 2, (9, 1), generator=generator).to(dtype)
    rois = torch.cat([image, corners, corners + sides], dim=1)
    offsets = torch.randn(9, 2, 2, 3, dtype=dtype, generator=generator) / 10 if moved else None
    levels = torch.randint(0, 2, (9,), generator=generator)

    found: dict[str, tuple[Tensor, ...]] = {}
    for backend in ("cpu", "reference"):
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (*maps, rois)]
        shifts = None if offsets is None else offsets.clone().requires_grad_()
        inputs = (
            (leaves[:2], ops.PyramidRoIs(leaves[2], levels), (2, 3), [1 / 8, 1 / 16])
            if pyramid
            else (leaves[0], leaves[1], (2, 3), 1 / 8)
        )
        output = ops.pool(*inputs, sampling=rule, channels=channels, offsets=shifts, sampling_ratio=2, backend=backend)
        weight = torch.randn(output.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        wanted = leaves if shifts is None else [*leaves, shifts]
        found[backend] = torch.autograd.grad(output, wanted, weight)
    for got, expected in zip(found["cpu"], found["reference"], strict=True):
        tolerance = 1e-10 if dtype == torch.float64 else 2e-5  # sums of hundreds of products of order one
        torch.testing.assert_close(got, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def test_opcheck() -> None:
    spec = Spec("aligned", "my points", (2, 3), (0.5,), 1).text
    grad, features = torch.randn(4, 2, 2, 3), torch.randn(1, 2, 5, 6)
    rois = torch.tensor([[0.0, 1, 2, 7, 8]]).repeat(4, 1)
    tables = [torch.randint(0, 5, (4, 2, 1, 2)), torch.rand(4, 2, 1, 2), torch.randint(0, 6, (4, 3, 1, 2))]
    arguments = (grad, features, rois, None, *tables, torch.rand(4, 3, 1, 2), spec, "cpu")
    torch.library.opcheck(torch.ops.detpool.weighted_sum_tap_grads, arguments)
    # A rule that answers otherwise than in the forward must not have other memory read.
    with pytest.raises(IndexError, match="cells from 0 to 4 or -1, got 9 to 9"):
        torch.ops.detpool.weighted_sum_tap_grads(grad, features, rois, None, tables[0].fill_(9), *arguments[5:])


def test_a_rule_whose_weights_do_not_move_gives_boxes_no_gradient() -> None:
    features, boxes = torch.randn(1, 2, 6, 6, requires_grad=True), torch.tensor([[0.0, 1, 1, 4, 4]], requires_grad=True)
    output = ops.pool(features, boxes, 2, sampling="whole axis", backend="cpu")
    torch.testing.assert_close(output, features.mean((2, 3))[..., None, None].expand(1, 2, 2, 2))
    of_features, of_boxes = torch.autograd.grad(output.sum(), (features, boxes), allow_unused=True)
    torch.testing.assert_close(of_features, torch.full_like(features, 4 / 36))
    assert of_boxes is None


def test_a_rule_that_reads_whole_rows_and_columns_is_warned_of_once() -> None:
    def pool(rois: int, side: int) -> None:
        boxes = torch.tensor([[0.0, 1, 1, 9, 9]]).repeat(rois, 1)
        ops.pool(torch.randn(1, 1, side, side + 2), boxes, 3, sampling="whole axis", backend="cpu")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool(3, 20)  # few boxes
        pool(40, 8)  # a small map
        boxes = torch.tensor([[0.0, 1, 1, 9, 9]]).repeat(40, 1)
        ops.pool(torch.randn(1, 1, 20, 20), boxes, 3, sampling="my points", backend="cpu")
    with pytest.warns(UserWarning, match="sampling 'whole axis' reads all 20 rows for each bin; taps of weight zero"):
        pool(40, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool(40, 20)
