"""What comes in: every accepted form of boxes, and a clear error for everything else."""

import pytest
import torch
import torchvision

from detpool import ops
from detpool.ops.spec import Spec

FEATURES = torch.arange(2 * 4 * 6 * 6, dtype=torch.float32).view(2, 4, 6, 6)
BOX = torch.tensor([[0.0, 1, 1, 4, 4]])
OPERATORS = {
    "roi_pool": ops.roi_pool,
    "roi_align": ops.roi_align,
    "roi_warp": ops.roi_warp,
    "ps_roi_pool": ops.ps_roi_pool,
    "ps_roi_align": ops.ps_roi_align,
    "pr_roi_pool": ops.pr_roi_pool,
    "deform_roi_pool": lambda i, b, s, *a: ops.deform_roi_pool(i, b, torch.zeros(len(b), 2, 2, 2), s, *a),
    "deform_ps_roi_pool": lambda i, b, s, *a: ops.deform_ps_roi_pool(i, b, None, s, *a),
    "pool": ops.pool,
}

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


@pytest.mark.parametrize(
    ("features", "boxes", "error", "message"),
    [
        (FEATURES, torch.tensor([[0.0, 1, 1, torch.nan, 4]]), ValueError, "boxes must be finite, got .* at row 0"),
        (FEATURES, torch.tensor([[0.0, 1, 1, torch.inf, 4]]), ValueError, "boxes must be finite"),
        (FEATURES, torch.tensor([[0.0, 4, 1, 1, 4]]), ValueError, r"x1 <= x2 and y1 <= y2, got \[4.0, 1.0, 1.0, 4.0\]"),
        (FEATURES, torch.tensor([[0.0, 1, 4, 4, 1]]), ValueError, "x1 <= x2 and y1 <= y2"),
        (FEATURES, torch.tensor([[-1.0, 1, 1, 4, 4]]), ValueError, r"boxes\[0, 0\] .* from 0 to 1, got -1.0"),
        (FEATURES, torch.tensor([[2.0, 1, 1, 4, 4]]), ValueError, r"boxes\[0, 0\] .* from 0 to 1, got 2.0"),
        (FEATURES, torch.tensor([[0.5, 1, 1, 4, 4]]), ValueError, "an integer from 0 to 1, got 0.5"),
        (FEATURES, torch.tensor([[torch.nan, 1, 1, 4, 4]]), ValueError, "got nan"),
        (FEATURES, torch.zeros(3, 4), ValueError, r"boxes must have shape \(number of boxes, 5\), got \(3, 4\)"),
        (FEATURES, torch.zeros(5), ValueError, r"number of boxes, 5\), got \(5,\)"),
        (FEATURES, torch.zeros(1, 5, dtype=torch.complex64), TypeError, "real numbers, got torch.complex64"),
        (FEATURES[0], BOX, ValueError, r"input must have shape \(N, C, H, W\), got \(4, 6, 6\)"),
        (FEATURES.long(), BOX, TypeError, "input must have a floating dtype, got torch.int64"),
        (FEATURES[:, :0], BOX, ValueError, r"at least one channel, row and column, got \(2, 0, 6, 6\)"),
        (FEATURES[:, :, :0], BOX, ValueError, "at least one channel, row and column"),
        (FEATURES[:0], BOX, ValueError, "index of an image"),
        (FEATURES, BOX.to("meta"), ValueError, "boxes must be on the device of input, cpu, got meta"),
        (None, BOX, TypeError, "input must be a tensor .* got NoneType"),
    ],
)
def test_wrong_input(features, boxes, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ops.pool(features, boxes, 2)


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        ([BOX[:, 1:]], ValueError, "one tensor for each of the 2 images of input, got 1"),
        ([BOX[:, 1:], BOX], ValueError, r"boxes\[1\] must have shape \(number of boxes, 4\), got \(1, 5\)"),
        ([BOX[:, 1:], None], TypeError, r"boxes\[1\] must be a tensor"),
        (7, TypeError, r"boxes must be a tensor of shape \(K, 5\) or a sequence .* got int"),
    ],
)
def test_wrong_lists(boxes, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ops.roi_align(FEATURES, boxes, 2)


@pytest.mark.parametrize(
    ("size", "scale", "error", "message"),
    [
        (0, 1.0, ValueError, "output_size must be a positive integer or a pair .* got 0"),
        ((2, -1), 1.0, ValueError, r"output_size .* got \(2, -1\)"),
        ((2, 2, 2), 1.0, ValueError, "output_size"),
        (2.5, 1.0, ValueError, "output_size"),
        (2, 0.0, ValueError, "spatial_scale must be a positive finite number, got 0.0"),
        (2, float("nan"), ValueError, "spatial_scale"),
        (2, "half", TypeError, "spatial_scale must be a number, got 'half'"),
    ],
)
def test_wrong_sizes_and_scales(size, scale, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ops.pool(FEATURES, BOX, size, scale)


@every_operator
def test_every_operator_checks_its_arguments(operator) -> None:
    """One mistake of each kind, values among them; `pool` and its tests have them all."""
    for arguments, message in (
        ((FEATURES[0], BOX, 2), "input must have shape"),
        ((FEATURES, BOX[:, 1:], 2), "boxes must have shape"),
        ((FEATURES, BOX.flip(1), 2), r"boxes\[0, 0\]"),
        ((FEATURES, BOX, 0), "output_size must be a positive integer"),
        ((FEATURES, BOX, 2, 0.0), "spatial_scale must be a positive finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            operator(*arguments)


@pytest.mark.parametrize("operator", [ops.ps_roi_pool, ops.ps_roi_align])
def test_channels_that_do_not_divide(operator) -> None:
    with pytest.raises(ValueError, match="multiple of 3 x 3 channels for position-sensitive pooling, got 4"):
        operator(FEATURES, BOX, 3)


def test_unknown_choices() -> None:
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'max', 'sum'.*, got 'median'"):
        ops.roi_align(FEATURES, BOX, 2, reduction="median")
    with pytest.raises(ValueError, match="convention must be one of 'torchvision', 'rfcn', got 'mxnet'"):
        ops.ps_roi_pool(FEATURES, BOX, 2, convention="mxnet")


def test_operators_called_below_their_checks_do_not_touch_foreign_memory() -> None:
    spec = Spec("aligned", "points", (1, 1), (1.0,), 2).text
    for image in (2.0, -1.0, 0.5, torch.nan):
        rois = torch.tensor([[image, 0, 0, 1, 1]])
        with pytest.raises(ValueError, match=r"boxes\[0, 0\]"):
            torch.ops.detpool.weighted_sum([FEATURES], rois, None, None, spec, "cpu")
    rois = torch.zeros(1, 5)
    for level in (-1, 1):
        with pytest.raises(ValueError, match="levels must be from 0 to 0"):
            torch.ops.detpool.weighted_sum([FEATURES], rois, torch.tensor([level]), None, spec, "cpu")


@every_operator
def test_zero_rois_are_valid_and_differentiable(operator) -> None:
    for images in (2, 0):
        features = FEATURES[:images].clone().requires_grad_()
        output = operator(features, torch.zeros(0, 5), 2)
        assert output.shape[0] == 0
        output.sum().backward()
        assert torch.equal(features.grad, torch.zeros_like(features))


@every_operator
def test_one_cell_and_boxes_outside(operator) -> None:
    features = torch.full((1, 4, 1, 1), 3.0, requires_grad=True)
    boxes = torch.tensor([[0.0, -50, -50, -40, -40], [0.0, 40, 40, 50, 50]])
    output = operator(features, boxes, 2)
    output.sum().backward()
    assert not output.any()
    assert not features.grad.any()


@pytest.mark.parametrize("name", ["roi_pool", "roi_align", "ps_roi_pool", "ps_roi_align"])
def test_accepts_what_torchvision_accepts(name: str) -> None:
    ours, theirs = getattr(ops, name), getattr(torchvision.ops, name)
    boxes = torch.tensor([[1.0, 1, 4, 4], [0, 2, 5, 5]])
    forms = (
        ([boxes, boxes[:1]], 2),
        ([boxes, boxes[:0]], (2, 1)),
        (torch.cat([torch.tensor([[0.0], [1.0]]), boxes], dim=1), [1, 2]),
    )
    for rois, size in forms:
        torch.testing.assert_close(ours(FEATURES, rois, size), theirs(FEATURES, rois, size))
        got = ours(input=FEATURES, boxes=rois, output_size=size, spatial_scale=0.5)
        torch.testing.assert_close(got, theirs(input=FEATURES, boxes=rois, output_size=size, spatial_scale=0.5))
    assert ours(FEATURES, [boxes.long(), boxes.long()], 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("RoIPool", (2, 0.5)),
        ("RoIAlign", (2, 0.5, 2)),
        ("RoIAlign", (2, 0.5, 2, True)),
        ("PSRoIPool", (2, 0.5)),
        ("PSRoIAlign", (2, 0.5, 2)),
    ],
)
def test_modules_are_those_of_torchvision(name: str, arguments: tuple) -> None:
    ours, theirs = getattr(ops, name)(*arguments), getattr(torchvision.ops, name)(*arguments)
    torch.testing.assert_close(ours(FEATURES, BOX), theirs(FEATURES, BOX))
    assert repr(ours).startswith(f"{name}(output_size=2, spatial_scale=0.5")


def test_precise_roi_pooling_as_a_module() -> None:
    assert torch.equal(ops.PrRoIPool(2, 0.5)(FEATURES, BOX), ops.pr_roi_pool(FEATURES, BOX, 2, 0.5))
