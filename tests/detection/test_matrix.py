"""Every detector with every pooler that fits it: two training steps from their config, and an evaluation."""

import re

import pytest
from detector_cases import MODELS, composed, train_and_evaluate
from hydra.errors import InstantiationException

from detpool.errors import ConfigError
from detpool.training.runs import build_module

SHARED = ["roi_align", "roi_pool", "roi_warp", "pr_roi_pool", "pool", "all_levels"]
POSITION_SENSITIVE = ["ps_roi_pool", "ps_roi_align", "ps_pr_roi_pool"]
POOLERS = {
    "spp_net": ["spp"],
    "rfcn": POSITION_SENSITIVE,
    "light_head_rcnn": [*POSITION_SENSITIVE, *SHARED],
}
PAIRS = [(model, pooler) for model in MODELS for pooler in POOLERS.get(model, SHARED)]
MORE = [
    ("faster_rcnn", "all_levels", ["pooler.fusion=concat"]),
    ("faster_rcnn", "all_levels", ["pooler.fusion=attention"]),
    ("faster_rcnn", "roi_align", ["head_pool=conv_average", "head_pool.convolutions=2"]),
    ("faster_rcnn", "roi_align", ["pooler.output_size=[5,3]"]),
    ("faster_rcnn", "spp", []),
    ("faster_rcnn", "roi_align", ["model.roi_heads.hard_examples=true"]),
    ("mask_rcnn_c5", "roi_align", ["proposals=jittered"]),
    ("faster_rcnn_c4", "roi_align", ["proposals=given"]),
    ("mask_rcnn", "roi_align", ["mask_pooler=roi_pool", "mask_pooler.output_size=7"]),
    ("rfcn", "ps_roi_pool", ["pooler.output_size=1"]),
    ("rfcn", "ps_roi_pool", ["pooler.output_size=7"]),
    ("rfcn", "pool", ["pooler.operator.channels=position_sensitive", "model.separate_rpn=false"]),
    ("iou_net", "roi_align", ["pooler@iou_pooler=roi_align", "model.roi_heads.iou_guided=false"]),
    ("iou_net", "roi_align", ["pooler@iou_pooler=roi_pool", "model.roi_heads.refine_steps=0"]),
]
CASES = [(model, pooler, []) for model, pooler in PAIRS] + MORE


@pytest.mark.parametrize(("model", "pooler", "overrides"), CASES, ids=lambda value: str(value))
def test_two_steps_and_an_evaluation(model, pooler, overrides):
    config = composed(model, pooler, overrides)
    metrics, reached = train_and_evaluate(config)
    # R-FCN's head are its score maps, which are computed before RoIs are pooled.
    parts = ["backbone.body", "backbone.neck" if model == "rfcn" else "roi_heads"]
    for part in [*parts, "rpn"] if config.model.proposals is None else parts:
        assert any(name.startswith(part) for name in reached), part
    assert ("mask_AP" in metrics) == model.startswith("mask")


@pytest.mark.parametrize(
    ("model", "pooler", "overrides", "message"),
    [
        ("rfcn", "roi_align", [], "pooler: R-FCN's 3 x 3 bins read 99 maps, .* pooler=ps_roi_pool"),
        ("faster_rcnn", "ps_roi_pool", [], "pooler, on maps of 8 channels: .* 7 x 7 .* got 8"),
        (
            "iou_net",
            "roi_align",
            ["pooler@iou_pooler=roi_pool"],
            "iou_pooler: refinement .* model.roi_heads.refine_steps=0",
        ),
        (
            "mask_rcnn",
            "roi_align",
            ["mask_pooler.output_size=[14,10]"],
            "mask_pooler: masks are square, .* got 14 x 10",
        ),
        ("mask_rcnn_c4", "roi_align", ["mask_pooler.output_size=[8,6]"], "mask_pooler: masks are square, .* got 8 x 6"),
        (
            "light_head_rcnn",
            "ps_roi_align",
            ["model.kernel_size=6"],
            "model.kernel_size must be odd, got 6",
        ),
        (
            "faster_rcnn",
            "roi_align",
            ["model.roi_heads.batch_size_per_image=0"],
            "model.roi_heads.batch_size_per_image must be at least 1, got 0",
        ),
        (
            "iou_net",
            "roi_align",
            ["model.roi_heads.iou_boxes_per_image=0"],
            "model.roi_heads.iou_boxes_per_image must be at least 1, got 0",
        ),
        (
            "iou_net",
            "roi_align",
            ["model.roi_heads.refine_steps=-1"],
            "model.roi_heads.refine_steps must be at least 0, got -1",
        ),
        (
            "faster_rcnn_c5",
            "all_levels",
            ["pooler.fusion=concat"],
            "pooler, on maps of 16 channels: fusion='concat' is built for channels=256, the operator gives 16",
        ),
        ("faster_rcnn", "roi_align", ["backbone.output_stride=16"], "increasing strides, got .*backbone.output_stride"),
        ("rfcn", "ps_roi_pool", ["backbone.output_stride=32"], "whose stride must be that of the last"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_those_that_do(model, pooler, overrides, message):
    config = composed(model, pooler, overrides)
    config.class_names = list("abcdef")
    with pytest.raises(InstantiationException) as error:
        build_module(config)
    assert isinstance(error.value.__cause__, ConfigError)  # which `train.py` prints alone
    assert re.search(message, str(error.value.__cause__))
