"""The pooler against torchvision's MultiScaleRoIAlign, and its own promises."""

import functools

import pytest
import torch
import torchvision
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import MultiScaleRoIAlign

from detpool import ops
from detpool.poolers import (
    AllLevelsPooler,
    DeformRoIPooler,
    RoIPooler,
    SpatialPyramidPooler,
    assign_levels,
    multi_scale_roi_align,
)

NAMES = ["0", "1", "2", "3"]
STRIDES = [4, 8, 16, 32]


def pyramid(batch: int = 2, channels: int = 3, height: int = 256, width: int = 320) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(batch, channels, height // stride, width // stride, generator=generator)
        for name, stride in zip(NAMES, STRIDES, strict=True)
    }
    return {**maps, "pool": torch.randn(batch, channels, height // 64, width // 64, generator=generator)}


def random_boxes(number: int, seed: int, height: int = 256, width: int = 320) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = torch.exp(torch.rand(number, 2, generator=generator) * 5) + 1  # 2 to 149 pixels
    start = torch.rand(number, 2, generator=generator) * torch.tensor([width, height])
    return torch.cat([start, torch.minimum(start + side, torch.tensor([width, height]) + 20.0)], 1)


def test_roi_align_pooler_equals_torchvision():
    boxes = [random_boxes(40, 1), random_boxes(60, 2)]
    sizes = [(256, 320), (200, 300)]
    theirs = MultiScaleRoIAlign(NAMES, 7, 2, canonical_scale=56)(pyramid(), boxes, sizes)
    operator = functools.partial(ops.roi_align, sampling_ratio=2)
    for strides in (None, STRIDES):
        ours = RoIPooler(NAMES, 7, operator, strides=strides, canonical_scale=56)
        # float32 sums of at most 16 products in another order
        torch.testing.assert_close(ours(pyramid(), boxes, sizes), theirs, atol=1e-5, rtol=1e-5)


def test_torchvisions_detector_runs_on_it_unchanged():
    def build(box_roi_pool):
        torch.manual_seed(0)
        return fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3, box_roi_pool=box_roi_pool, box_score_thresh=0.0
        ).eval()

    arguments = (["0", "1"], 7, 2)
    images = [torch.rand(3, 100, 120, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        theirs = build(MultiScaleRoIAlign(*arguments))(images)[0]
        ours = build(multi_scale_roi_align(*arguments))(images)[0]
    assert len(ours["boxes"]) > 0
    for key in ("boxes", "scores"):
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-3, rtol=1e-4)
    assert RoIPooler(NAMES, (5, 3), ops.roi_align).output_size == (5, 3)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (ops.RoIPool(5, 0.25), ops.roi_pool),
        (ops.RoIAlign((5, 5), 0.25, 1, aligned=True), functools.partial(ops.roi_align, sampling_ratio=1, aligned=True)),
        (ops.PrRoIPool(5, aligned=True), functools.partial(ops.pr_roi_pool, aligned=True)),
    ],
)
@pytest.mark.parametrize("names", [NAMES, ["1"]])
def test_modules_of_operators_are_taken_with_their_settings(module, function, names):
    boxes = [random_boxes(20, 1), random_boxes(10, 2)]
    got = RoIPooler(names, 5, module, canonical_scale=56)(pyramid(), boxes, [(256, 320)])
    assert torch.equal(got, RoIPooler(names, 5, function, canonical_scale=56)(pyramid(), boxes, [(256, 320)]))


def test_an_operator_with_sizes_that_do_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"output_size is 7, and that of the operator RoIAlign\(output_size=\(7, 5\), "
    ):
        RoIPooler(["0"], 7, ops.RoIAlign((7, 5), 0.25, 2))
    with pytest.raises(
        TypeError, match=r"operator must be called as .* got a module that takes \(input, rois\): RoIAlign"
    ):
        RoIPooler(["0"], 7, torchvision.ops.RoIAlign(7, 0.25, 2))
    for pooler in (RoIPooler, DeformRoIPooler, AllLevelsPooler):
        with pytest.raises(ValueError, match="operator has output_size, spatial_scale of its own, .* from the pooler"):
            pooler(["0"], 7, functools.partial(ops.roi_align, spatial_scale=0.5, output_size=3))


def test_levels_follow_equation_1():
    # sides around the canonical 224 px at level 4 (stride 16), with maps at levels 2..5
    sides = torch.tensor([0.0, 1, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000])
    boxes = torch.stack([torch.zeros(10), torch.zeros(10), sides, sides], 1)
    assert assign_levels(boxes, num_levels=4, min_level=2).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("operator", [ops.roi_pool, ops.roi_align, ops.pr_roi_pool])
def test_order_of_boxes_is_kept(operator):
    pooler = RoIPooler(NAMES, 2, operator, canonical_scale=56)
    boxes = random_boxes(30, 3)
    features = pyramid(batch=1)
    whole = pooler(features, [boxes], [(256, 320)])
    single = torch.cat([pooler(features, [box[None]], [(256, 320)]) for box in boxes])
    # The taps of a batch of boxes are summed in another order than those of one box.
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [NAMES, ["1"]])
def test_images_without_boxes_keep_every_map_in_the_graph(names):
    features = {name: value.requires_grad_() for name, value in pyramid().items()}
    pooler = RoIPooler(names, 7, ops.roi_align)
    out = pooler(features, [torch.zeros(0, 4), torch.zeros(0, 4)], [(256, 320)] * 2)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    for name in names:
        assert torch.equal(features[name].grad, torch.zeros_like(features[name]))


def test_arbitrary_strides():
    strides = [6, 12]
    features = {"a": torch.rand(1, 1, 30, 30), "b": torch.rand(1, 1, 15, 15)}
    pooler = RoIPooler(["a", "b"], 2, ops.roi_align, strides=strides, canonical_scale=96, canonical_level=4)
    small, large = torch.tensor([[3.0, 3, 20, 20]]), torch.tensor([[3.0, 3, 150, 150]])
    out = pooler(features, [torch.cat([large, small])], [(180, 180)])
    torch.testing.assert_close(out[:1], ops.roi_align(features["b"], [large], 2, 1 / 12))
    torch.testing.assert_close(out[1:], ops.roi_align(features["a"], [small], 2, 1 / 6))


def test_scales_follow_the_longer_side():
    """Of 20 x 1000 pixels at stride 8, torchvision takes the scale from 3 rows and is off by a factor of two."""
    features = {"0": torch.randn(1, 2, 3, 125)}
    boxes = [torch.tensor([[100.0, 2, 300, 18]])]
    got = multi_scale_roi_align(["0"], 2, 2)(features, boxes, [(20, 1000)])
    torch.testing.assert_close(got, ops.roi_align(features["0"], boxes, 2, 1 / 8, 2))
    tall = {"0": features["0"].transpose(2, 3)}
    got = multi_scale_roi_align(["0"], 2, 2)(tall, [boxes[0][:, [1, 0, 3, 2]]], [(1000, 20)])
    torch.testing.assert_close(got, ops.roi_align(tall["0"], [boxes[0][:, [1, 0, 3, 2]]], 2, 1 / 8, 2))


def test_no_images():
    maps = {name: value[:0].requires_grad_() for name, value in pyramid().items()}
    for strides in (None, STRIDES):
        out = RoIPooler(NAMES, 7, ops.roi_align, strides=strides)(maps, [], [])
        assert out.shape == (0, 3, 7, 7)
        out.sum().backward()


def test_an_operator_of_ones_own_pools_each_level():
    def double(features, rois, output_size, spatial_scale):
        return 2 * ops.roi_align(features, rois, output_size, spatial_scale)

    boxes, sizes = [random_boxes(10, 1), random_boxes(5, 2)], [(256, 320)] * 2
    got = RoIPooler(NAMES, 3, double, strides=STRIDES, canonical_scale=56)(pyramid(), boxes, sizes)
    expected = RoIPooler(NAMES, 3, ops.roi_align, strides=STRIDES, canonical_scale=56)(pyramid(), boxes, sizes)
    torch.testing.assert_close(got, 2 * expected)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="featmap_names is empty"):
        RoIPooler([], 7, ops.roi_align)
    with pytest.raises(ValueError, match=r"strides must hold one positive stride .* got \[4\]"):
        RoIPooler(["0", "1"], 7, ops.roi_align, strides=[4])
    with pytest.raises(ValueError, match="canonical_scale must be a positive number of pixels, got 0"):
        RoIPooler(["0"], 7, ops.roi_align, canonical_scale=0)
    pooler = RoIPooler(["0", "9"], 7, ops.roi_align)
    with pytest.raises(KeyError, match=r"\['9'\] are not in the input, which has"):
        pooler(pyramid(), [torch.zeros(0, 4)] * 2, [(256, 320)] * 2)
    pooler = RoIPooler(NAMES, 7, ops.roi_align)
    with pytest.raises(ValueError, match="(?i)nan|finite"):
        pooler(pyramid(), [torch.tensor([[0.0, 0, 9, 9], [float("nan"), 0, 9, 9]])] * 2, [(256, 320)] * 2)
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        pooler(pyramid(), [torch.zeros(0, 4)], [(256, 320)] * 2)
    for levels in ([], 3, "12", [[1, 2, 3]], [0]):
        with pytest.raises(ValueError, match="levels must be a "):
            SpatialPyramidPooler(["0"], levels)


def test_learned_reductions_are_trained_and_saved():
    reduction = ops.reductions.Lp(p=3.0, learnable=True)
    pooler = RoIPooler(NAMES, 2, functools.partial(ops.pool, reduction=reduction, sampling_ratio=2), canonical_scale=56)
    assert list(dict(pooler.named_parameters())) == ["reduction.p"]
    assert list(pooler.state_dict()) == ["reduction.p"]
    pooler(pyramid(), [random_boxes(5, 1), random_boxes(5, 2)], [(256, 320)] * 2).sum().backward()
    assert reduction.p.grad != 0


def test_all_levels_are_joined():
    boxes = [random_boxes(10, 1), random_boxes(5, 2)]
    sizes = [(256, 320)] * 2
    rois = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in enumerate(boxes)])
    pooled = [ops.roi_align(pyramid()[name], rois, 3, 1 / s) for name, s in zip(NAMES, STRIDES, strict=True)]
    pooler = AllLevelsPooler(NAMES, 3, ops.roi_align, strides=STRIDES)
    assert list(pooler.parameters()) == []
    torch.testing.assert_close(pooler(pyramid(), boxes, sizes), sum(pooled))

    torch.manual_seed(0)
    pooler = AllLevelsPooler(NAMES, 3, ops.roi_align, strides=STRIDES, fusion="concat", channels=3)
    weight, bias = pooler.mix.weight[:, :, 0, 0], pooler.mix.bias
    expected = torch.einsum("oc,kcij->koij", weight, torch.cat(pooled, 1)) + bias[:, None, None]
    torch.testing.assert_close(pooler(pyramid(), boxes, sizes), expected)

    pooler = AllLevelsPooler(NAMES, 3, ops.roi_align, strides=STRIDES, fusion="attention", channels=3)
    out = pooler(pyramid(), boxes, sizes)
    low, high = torch.stack(pooled).amin(0), torch.stack(pooled).amax(0)
    assert ((out >= low - 1e-5) & (out <= high + 1e-5)).all()  # weights of each bin are positive and sum to one
    with torch.no_grad():
        pooler.mix.weight.zero_()
        pooler.mix.bias.copy_(torch.tensor([0.0, 50, 0, 0]))
    torch.testing.assert_close(pooler(pyramid(), boxes, sizes), pooled[1])
    pooler = AllLevelsPooler(NAMES, 3, ops.roi_align, strides=STRIDES, fusion="max")
    assert torch.equal(pooler(pyramid(), boxes, sizes), torch.stack(pooled).max(0).values)
    with pytest.raises(ValueError, match="fusion must be one of sum, max, concat, attention, got 'mean'"):
        AllLevelsPooler(NAMES, 3, ops.roi_align, fusion="mean")


@pytest.mark.parametrize("shared", [False, True])
def test_convolutions_before_and_after_levels_are_joined(shared):
    boxes, sizes = [random_boxes(10, 1), random_boxes(5, 2)], [(256, 320)] * 2
    torch.manual_seed(0)
    choices = {"fusion": "max", "before": 3, "shared": shared, "after": 5}
    pooler = AllLevelsPooler(NAMES, 3, ops.roi_align, strides=STRIDES, channels=3, **choices)
    sides = [tuple(p.shape[2:]) for p in pooler.parameters() if p.dim() == 4]
    assert sides == [(3, 3)] * (1 if shared else 4) + [(5, 5)]
    parts = []
    for number, (name, stride) in enumerate(zip(NAMES, STRIDES, strict=True)):
        pooled = ops.roi_align(pyramid()[name], boxes, 3, 1 / stride)
        own = pooler.before[0 if shared else number][0]
        parts.append(torch.nn.functional.conv2d(pooled, own.weight, own.bias, padding=1).relu())
    joined, last = torch.stack(parts).amax(0), pooler.after[0]
    expected = torch.nn.functional.conv2d(joined, last.weight, last.bias, padding=2).relu()
    torch.testing.assert_close(pooler(pyramid(), boxes, sizes), expected)
    with pytest.raises(ValueError, match="before must be 0 or the odd side of a convolution, got 2"):
        AllLevelsPooler(NAMES, 3, ops.roi_align, before=2)
    with pytest.raises(ValueError, match="shared is of the convolutions .* and before=0 makes none"):
        AllLevelsPooler(NAMES, 3, ops.roi_align, shared=True, after=3)
    with pytest.raises(ValueError, match="is built for channels=256, the operator gives 3"):
        AllLevelsPooler(NAMES, 3, ops.roi_align, after=3)(pyramid(), boxes, sizes)


def test_deformable_bins_move_by_what_a_layer_makes_of_the_roi():
    boxes, sizes = [random_boxes(10, 1), random_boxes(5, 2)], [(256, 320)] * 2
    operator = functools.partial(ops.deform_roi_pool, sampling_ratio=2, trans_std=0.2)
    pooler = DeformRoIPooler(NAMES, (2, 3), operator, channels=3, canonical_scale=56)
    align = functools.partial(ops.roi_align, sampling_ratio=2, aligned=True)
    in_place = RoIPooler(NAMES, (2, 3), align, canonical_scale=56)(pyramid(), boxes, sizes)
    torch.testing.assert_close(pooler(pyramid(), boxes, sizes), in_place)  # it begins with zeros
    torch.manual_seed(0)
    torch.nn.init.normal_(pooler.offset.weight, std=0.2)
    offsets = torch.nn.functional.linear(in_place.flatten(1), pooler.offset.weight).view(-1, 2, 2, 3)
    levels = assign_levels(torch.cat(boxes), 4, 2, canonical_scale=56).tolist()
    out = pooler(pyramid(), boxes, sizes)
    for row, (box, level) in enumerate(zip(torch.cat(boxes), levels, strict=True)):
        rois = torch.cat([torch.tensor([0.0 if row < 10 else 1.0]), box])[None]
        single = operator(pyramid()[str(level)], rois, offsets[row : row + 1], (2, 3), 1 / STRIDES[level])
        torch.testing.assert_close(out[row], single[0])
    out.sum().backward()
    assert pooler.offset.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="pooler is built for channels=256, the operator gives 3"):
        DeformRoIPooler(NAMES, 2, operator)(pyramid(), boxes, sizes)


def test_spatial_pyramid_is_a_column_of_all_bins():
    pooler = SpatialPyramidPooler(NAMES, levels=[1, [2, 3]], strides=STRIDES, canonical_scale=56)
    assert pooler.output_size == (7, 1)
    boxes = random_boxes(12, 1)
    out = pooler(pyramid(batch=1), [boxes], [(256, 320)])
    levels = assign_levels(boxes, 4, 2, canonical_scale=56)
    for row, (box, level) in enumerate(zip(boxes, levels.tolist(), strict=True)):
        single = ops.spp(pyramid(batch=1)[str(level)], [box[None]], [1, (2, 3)], 1 / STRIDES[level])
        assert torch.equal(out[row, :, :, 0], single[0])
