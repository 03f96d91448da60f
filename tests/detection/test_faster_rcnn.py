"""The detector as a whole, against torchvision's own."""

import functools

import pytest
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from detpool import ops
from detpool.detection import ProposalNetwork, TwoStageHeads, faster_rcnn_fpn
from detpool.detection.backbones import FPNBackbone, SmallCNN
from detpool.errors import ConfigError
from detpool.poolers import RoIPooler

ANCHORS = [[16], [32], [64], [128], [256]]


def build(**arguments):
    torch.manual_seed(0)
    pooler = functools.partial(RoIPooler, output_size=7, operator=functools.partial(ops.roi_align, sampling_ratio=2))
    defaults = {
        "fpn_channels": 8,
        "rpn": functools.partial(ProposalNetwork, anchor_sizes=ANCHORS),
        "roi_heads": functools.partial(TwoStageHeads, score_thresh=0.0),
    }
    return faster_rcnn_fpn(3, SmallCNN((8, 8, 8, 8)), pooler, **{**defaults, **arguments})


def test_equals_torchvisions_detector_with_the_same_weights():
    ours = build().eval()
    theirs = FasterRCNN(
        FPNBackbone(SmallCNN((8, 8, 8, 8)), 8),
        num_classes=4,
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, ANCHORS)), ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_score_thresh=0.0,
        # Images whose shorter side it has already are not resized by torchvision either.
        min_size=128,
        max_size=160,
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 128, 160, generator=generator), torch.rand(3, 128, 128, generator=generator)]
    with torch.no_grad():
        for mine, reference in zip(ours(images), theirs(images), strict=True):
            assert len(mine["boxes"]) == len(reference["boxes"]) > 0
            for key in ("boxes", "scores"):
                torch.testing.assert_close(mine[key], reference[key], atol=1e-3, rtol=1e-4)


def test_losses_are_finite_without_any_object():
    model = build()
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model([torch.rand(3, 96, 96)], [target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match=r"model\.rpn\.anchor_sizes must have 5 entries, one per map .* got 1"):
        build(rpn=functools.partial(ProposalNetwork, anchor_sizes=[[16]]))
    with pytest.raises(ConfigError, match=r"model\.rpn\.batch_size_per_image must be at least 1, got 0"):
        build(rpn=functools.partial(ProposalNetwork, anchor_sizes=ANCHORS, batch_size_per_image=0))


@pytest.mark.parametrize("training", [True, False])
def test_images_are_padded_and_never_resized(training):
    model = build().train(training)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    targets = [{"boxes": torch.tensor([[1.0, 1, 30, 30]]), "labels": torch.tensor([1])}] * 2
    model([torch.rand(3, 60, 100), torch.rand(3, 90, 50)], targets if training else None)
    assert seen == [(2, 3, 96, 128)]
