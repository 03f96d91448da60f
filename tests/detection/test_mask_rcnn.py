"""Mask R-CNN against torchvision's own, weights and all."""

import functools

import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn

from detpool import ops
from detpool.detection import TwoStageHeads, faster_rcnn_fpn
from detpool.detection.assemble import PYRAMID_RPN
from detpool.detection.backbones import resnet
from detpool.poolers import RoIPooler


def test_torchvisions_maskrcnn_resnet50_fpn_is_ours_with_the_same_weights():
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        box_score_thresh=0.0,
        min_size=96,
        max_size=128,
        rpn_post_nms_top_n_test=100,
        box_detections_per_img=10,
    )
    operator = functools.partial(ops.roi_align, sampling_ratio=2)
    ours = faster_rcnn_fpn(
        3,
        resnet("resnet50", weights=None),
        functools.partial(RoIPooler, output_size=7, operator=operator),
        mask_pooler=functools.partial(RoIPooler, output_size=14, operator=operator),
        rpn=functools.partial(PYRAMID_RPN, post_nms_top_n_test=100),
        roi_heads=functools.partial(TwoStageHeads, score_thresh=0.0, detections_per_img=10),
    )
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    # Images whose shorter side is min_size already, which torchvision does not resize.
    images = [torch.rand(3, 96, 128, generator=generator), torch.rand(3, 96, 96, generator=generator)]
    # In float32 two of two million mask pixels differ by 2e-4: ours sums in another order, and a box moved by a
    # rounding error moves its mask's edge. In float64 all is equal.
    for dtype, keys, tolerance in ((torch.float32, ("boxes", "scores"), 1e-4), (torch.float64, None, 1e-9)):
        with torch.no_grad():
            found, expected = (
                model.to(dtype).eval()([image.to(dtype) for image in images]) for model in (ours, theirs)
            )
        for mine, reference in zip(found, expected, strict=True):
            assert len(mine["boxes"]) == len(reference["boxes"]) > 0
            assert torch.equal(mine["labels"], reference["labels"])
            for key in keys or ("boxes", "scores", "masks"):
                torch.testing.assert_close(mine[key], reference[key], atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(mine["masks"], reference["masks"], atol=1e-3, rtol=1e-3)
