"""Networks whose maps are not halved: the strides that follow, and everything that is told of them."""

import functools
import math

import numpy as np
import pytest
import torch
from detector_cases import composed, train_and_evaluate
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detpool import layers, ops
from detpool.detection import ProposalNetwork
from detpool.detection.backbones import FPNBackbone, SmallCNN, resnet, torchvision_body
from detpool.errors import ConfigError
from detpool.poolers import RoIPooler

ROOT = math.sqrt(2)
sqrt2 = functools.partial(layers.FractionalRegionPool2d)


@pytest.mark.parametrize(
    ("build", "strides"),
    [
        (lambda: SmallCNN((4,) * 7, downsample=sqrt2), [4 * ROOT**i for i in range(7)]),
        (lambda: SmallCNN((4,) * 4, stem_pool=sqrt2, min_stride=2.83), [2 * ROOT * 2**i for i in range(4)]),
        (lambda: resnet("resnet18", None, stem_pool=sqrt2, downsample=sqrt2), [2 * ROOT**i for i in range(1, 5)]),
        (
            lambda: SmallCNN((4,) * 3, downsample=functools.partial(layers.FractionalMaxPool2d, 2, output_ratio=0.7)),
            [4, 4 / 0.7, 4 / 0.49],
        ),
    ],
)
def test_strides_follow_and_an_impulse_moves_so(build, strides):
    torch.manual_seed(0)
    body = build().eval()
    assert body.strides == pytest.approx(strides)
    assert all(isinstance(found, int) == (abs(found - round(found)) < 1e-6) for found in body.strides)
    size = 512
    image = torch.rand(1, 3, size, size) * 0.1
    with torch.no_grad():
        before = body(image)
        # Cells of an image that is no whole number of them wide: each map is within one of what its stride says.
        assert all(abs(map.shape[2] - size / stride) <= 1.5 for map, stride in zip(before, strides, strict=True))
        places = np.array([128, 192, 256, 320, 384])
        found = []
        for place in places:
            moved = image.clone()
            moved[..., place : place + 4, place : place + 4] += 3
            changes = [(after - map)[0].abs().sum(0) for after, map in zip(body(moved), before, strict=True)]
            # The centre of what changed, along the rows.
            found.append([float((c.sum(1) * (torch.arange(len(c)) + 0.5)).sum() / c.sum()) for c in changes])
    for column, stride in zip(np.array(found).T, strides, strict=True):
        # Half a cell by convolutions of stride 2, which look ahead; and what maps differ by from a whole number of
        # cells: overlapping regions reach half a cell further at either border, PyTorch's sizes are rounded down.
        assert np.abs(column - (places + 2) / stride).max() <= 2
        assert 1 / np.polyfit(places, column, 1)[0] == pytest.approx(stride, rel=0.1)  # not of another factor


def test_anchors_lie_where_strides_say():
    strides = [4, 4 * ROOT, 8]
    network = ProposalNetwork(["0", "1", "2"], 4, [[16], [24], [32]], strides=strides)
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (60, 90)])
    maps = [torch.zeros(2, 4, round(64 / s), round(96 / s)) for s in strides]
    anchors = network._anchors(images, maps, torch.float32)
    assert len(anchors) == 2
    centres = (anchors[0][:, :2] + anchors[0][:, 2:]) / 2
    expected = [
        (x * s, y * s)
        for s, map in zip(strides, maps, strict=True)
        for y in range(map.shape[2])
        for x in range(map.shape[3])
        for _ in range(3)
    ]
    torch.testing.assert_close(centres, torch.tensor(expected, dtype=torch.float32))
    # Whole strides: torchvision's own, to the bit.
    whole = ProposalNetwork(["0", "1"], 4, [[16], [24]], strides=[4, 8])
    maps = [torch.zeros(2, 4, 16, 24), torch.zeros(2, 4, 8, 12)]
    generator = AnchorGenerator(((16,), (24,)), ((0.5, 1.0, 2.0),) * 2)
    assert torch.equal(whole._anchors(images, maps, torch.float32)[1], generator(images, maps)[1])


@pytest.mark.parametrize("strides", [[4 * ROOT**i for i in range(7)], [2.83, 5.66, 11.3], [4, 16, 32], [4, 8, 16]])
def test_boxes_are_pooled_from_the_coarsest_map_that_is_not_above_them(strides):
    side = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 300 + 1
    boxes = torch.stack([torch.zeros(200), torch.zeros(200), side, side], 1)
    names = [str(i) for i in range(len(strides))]
    pooler = RoIPooler(names, 1, ops.roi_align, strides=strides, canonical_scale=56, canonical_level=3)
    # Level l of the pyramid holds the number l.
    maps = {name: torch.full((1, 1, 400, 400), float(i)) for i, name in enumerate(names)}
    pooled = pooler(maps, [boxes], [(400, 400)]).flatten()
    own = [max((i for i, s in enumerate(strides) if s <= 8 * float(x) / 56 * (1 + 1e-6)), default=0) for x in side]
    assert pooled.round().tolist() == own


def test_scales_are_those_of_maps():
    strides = [4 * ROOT]
    pooler = RoIPooler(["0"], 2, ops.roi_align, strides=strides)
    feature, box = torch.rand(1, 3, 20, 20), torch.tensor([[5.0, 9.0, 70.0, 61.0]])
    expected = ops.roi_align(feature, [box / (4 * ROOT)], 2, 1.0)
    torch.testing.assert_close(pooler({"0": feature}, [box], [(96, 96)]), expected)


def test_passes_are_averaged_in_evaluation():
    factory = functools.partial(layers.FractionalRegionPool2d, test_passes=3)
    backbone = FPNBackbone(SmallCNN((4, 6, 8), downsample=factory), 4)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        backbone.eval()
        torch.manual_seed(0)
        maps, _ = backbone.body.maps_and_prefix(image)
        torch.manual_seed(0)
        passes = [backbone.body(image) for _ in range(3)]
        assert not torch.equal(passes[0][-1], passes[1][-1])
        for i, map in enumerate(maps):
            torch.testing.assert_close(map, torch.stack([one[i] for one in passes]).mean(0))
        backbone.train()
        torch.manual_seed(0)
        once = backbone.body.maps_and_prefix(image)[0]
        torch.manual_seed(0)
        for map, one in zip(once, backbone.body(image), strict=True):
            assert torch.equal(map, one)


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("faster_rcnn", ["downsample.test_passes=2"]),
        ("faster_rcnn", ["downsample.sequence=pseudorandom", "downsample.overlapping=false", "pooler=all_levels"]),
        ("mask_rcnn_c5", ["pooler=roi_pool", "pooler@mask_pooler=roi_align"]),
        ("faster_rcnn_c4", ["pooler.output_size=7"]),
        ("rfcn", ["model.separate_rpn=false"]),
    ],
)
def test_detectors_train_on_such_maps(model, overrides):
    train_and_evaluate(composed(model, None, ["downsample=fractional_sqrt2", *overrides]))


def test_images_are_padded_to_whole_cells():
    config = composed("faster_rcnn", None, ["downsample=fractional_sqrt2"])
    from detpool.training.runs import build_detector

    detector = build_detector(config, 2)
    assert detector.backbone.strides == pytest.approx([4, 4 * ROOT, 8, 8 * ROOT])
    # VGG has two poolings before the map that was of stride 4.
    pooled = torchvision_body("vgg11", None, stem_pool=sqrt2, downsample=sqrt2)
    assert pooled.strides == pytest.approx([2, 2 * ROOT, 4, 4 * ROOT])
    assert detector.transform.size_divisible == 16
    assert detector.rpn.strides == pytest.approx([4, 4 * ROOT, 8, 8 * ROOT, 16 * ROOT])
    assert detector.roi_heads.box_roi_pool.strides == pytest.approx([4, 4 * ROOT, 8, 8 * ROOT])


def test_what_does_not_fit():
    for build, message in (
        (lambda: SmallCNN((4,) * 4, stem_pool=sqrt2), r"min_stride must be one of \[2.828, 5.657, .* got 4"),
        (
            lambda: SmallCNN((4,) * 5, downsample=sqrt2, output_stride=8),
            "downsample makes 1.414 times smaller cannot be dilated",
        ),
        (
            lambda: resnet("resnet50", None, output_stride=16, downsample=sqrt2),
            "output_stride must be 32 where stem_pool",
        ),
        (lambda: SmallCNN((4, 4), downsample=functools.partial(layers.MaxPool2d, 3)), "must halve maps and keep"),
    ):
        with pytest.raises(ConfigError, match=message):
            build()
