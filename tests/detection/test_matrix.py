"""Every detector with every pooler that fits it: two training steps from its config, and an evaluation.

Each detector and each pooler is in some of the pairs; all others run with the slow tests.
"""

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
IOU_HEAD = [
    "iou_pooler=pr_roi_pool",
    "model.roi_heads._target_=detpool.detection.IoUHeads",
    "model.iou_channels=16",
]
PAIRS = [
    # Each detector with one of its poolers, one after the other, and two of them with all.
    pytest.param(
        model, pooler, [], marks=[] if model in ("faster_rcnn", "rfcn") or n == i % len(names) else pytest.mark.slow
    )
    for i, (model, names) in enumerate((model, POOLERS.get(model, SHARED)) for model in MODELS)
    for n, pooler in enumerate(names)
]
MORE = [
    ("faster_rcnn", "all_levels", ["pooler.fusion=concat"]),
    ("faster_rcnn", "all_levels", ["pooler.fusion=attention"]),
    ("faster_rcnn", "roi_align", ["head_pool=conv_average", "head_pool.convolutions=2"]),
    ("faster_rcnn", "panet", []),
    ("faster_rcnn", "groie", []),
    ("faster_rcnn", "deform_roi_pool", []),
    ("faster_rcnn", "roi_align", ["pooler.output_size=[5,3]"]),
    ("faster_rcnn", "roi_align", ["pooler.operator.sampling_ratio=[1,2]"]),
    ("faster_rcnn", "spp", []),
    ("faster_rcnn", "roi_align", ["model.roi_heads.hard_examples=true"]),
    ("faster_rcnn", "roi_align", ["head_pool=conv_fc", "head_pool.conv_channels=32", "model.roi_heads.nms=gaussian"]),
    ("faster_rcnn_c5", "roi_align", ["model.class_agnostic=true", "model.roi_heads.box_loss=giou"]),
    ("faster_rcnn_c4", "roi_align", ["model.class_agnostic=true", "model.roi_heads.box_loss=ciou"]),
    ("light_head_rcnn", "ps_roi_align", ["model.class_agnostic=true", "model.roi_heads.box_loss=diou"]),
    ("rfcn", "ps_roi_pool", ["model.roi_heads.box_loss=giou", "model.roi_heads.nms=linear"]),
    ("cascade_rcnn", "roi_align", ["stage2_pooler=pr_roi_pool", "stage3_pooler=all_levels"]),
    ("cascade_rcnn", "roi_align", ["model.roi_heads.hard_examples=true", "model.class_agnostic=false"]),
    ("mask_rcnn", "roi_align", IOU_HEAD),
    ("faster_rcnn_c4", "roi_align", [*IOU_HEAD, "model.class_agnostic=true"]),
    ("faster_rcnn_c5", "roi_align", [*IOU_HEAD, "model.roi_heads.iou_guided=false", "model.roi_heads.nms=linear"]),
    ("mask_rcnn_c5", "roi_align", ["proposals=jittered"]),
    ("faster_rcnn_c4", "roi_align", ["proposals=given"]),
    ("mask_rcnn", "roi_align", ["mask_pooler=roi_pool", "mask_pooler.output_size=7"]),
    ("mask_rcnn", "roi_align", ["model.mask_convolutions=0", "model.mask_channels=12"]),
    ("rfcn", "ps_roi_pool", ["pooler.output_size=1"]),
    ("rfcn", "ps_roi_pool", ["pooler.output_size=7"]),
    ("rfcn", "pool", ["pooler.operator.channels=position_sensitive", "model.separate_rpn=false"]),
    ("iou_net", "roi_align", ["pooler@iou_pooler=roi_align", "model.roi_heads.iou_guided=false"]),
    ("iou_net", "roi_align", ["pooler@iou_pooler=roi_pool", "model.roi_heads.refine_steps=0"]),
]
CASES = [*PAIRS, *MORE]


@pytest.mark.parametrize(("model", "pooler", "overrides"), CASES, ids=lambda value: str(value))
def test_two_steps_and_an_evaluation(model, pooler, overrides):
    config = composed(model, pooler, overrides)
    metrics, reached = train_and_evaluate(config)
    # R-FCN's head are its score maps, which are computed before RoIs are pooled.
    parts = ["backbone.body", "backbone.neck" if model == "rfcn" else "roi_heads"]
    for part in [*parts, "rpn"] if config.model.proposals is None else parts:
        assert any(name.startswith(part) for name in reached), part
    assert ("mask_AP" in metrics) == ("mask" in model)


@pytest.mark.parametrize(
    ("model", "pooler", "override", "message"),
    [
        ("rfcn", "roi_align", None, "pooler: R-FCN's 3 x 3 bins read 99 maps, .* pooler=ps_roi_pool"),
        ("faster_rcnn", "ps_roi_pool", None, "pooler, on maps of 8 channels: .* 7 x 7 .* got 8"),
        ("iou_net", None, "pooler@iou_pooler=roi_pool", "iou_pooler: refinement .* model.roi_heads.refine_steps=0"),
        ("mask_rcnn", None, "mask_pooler.output_size=[14,10]", "mask_pooler: masks are square, .* got 14 x 10"),
        ("mask_rcnn_c4", None, "mask_pooler.output_size=[8,6]", "mask_pooler: masks are square, .* got 8 x 6"),
        ("light_head_rcnn", None, "model.kernel_size=6", "model.kernel_size must be odd, got 6"),
        (
            "faster_rcnn",
            None,
            "model.roi_heads.batch_size_per_image=0",
            "batch_size_per_image must be at least 1",
        ),
        ("faster_rcnn", None, "model.roi_heads.nms_sigma=0", "nms_sigma must be more than 0, got 0"),
        ("faster_rcnn", None, "model.roi_heads.box_loss_weight=-1", "box_loss_weight must be more than 0, got -1"),
        ("faster_rcnn", None, "head_pool=conv_fc head_pool.groups=3", r"head_pool\.groups must divide .*=256, got 3"),
        (
            "faster_rcnn",
            None,
            "iou_pooler=roi_align",
            "TwoStageHeads has no iou_head, iou_pooler, iou_predictor; .* IoUHeads with an iou_pooler",
        ),
        (
            "mask_rcnn_c5",
            None,
            "model.roi_heads._target_=detpool.detection.IoUHeads",
            "IoUHeads needs iou_head, iou_pooler, iou_predictor; .*iou_pooler=pr_roi_pool",
        ),
        ("rfcn", None, "model.roi_heads._target_=detpool.detection.IoUHeads", "IoUHeads needs iou_head, iou_pooler"),
        (
            "faster_rcnn",
            None,
            "model.roi_heads._target_=detpool.detection.CascadeHeads",
            "CascadeHeads needs make_stage; .* CascadeHeads goes with model=cascade_rcnn",
        ),
        (
            "faster_rcnn",
            None,
            "model.roi_heads.bbox_reg_weights=[0,1,1,1]",
            r"bbox_reg_weights must be more than 0, got",
        ),
        ("faster_rcnn", None, "model.roi_heads.positive_fraction=2", "positive_fraction must be 0 to 1, got 2"),
        ("rfcn", None, "model.roi_heads.positive_fraction=0.5", "positive_fraction=0.5 has no effect: with hard_examp"),
        (
            "faster_rcnn",
            None,
            "model.roi_heads.fg_iou_thresh=0.3",
            "bg_iou_thresh must be 0 to fg_iou_thresh=0.3, got 0.5",
        ),
        (
            "faster_rcnn",
            None,
            "model.rpn.fg_iou_thresh=0.2",
            "rpn.bg_iou_thresh must be 0 to fg_iou_thresh=0.2, got 0.3",
        ),
        ("faster_rcnn", None, "model.roi_heads.detections_per_img=0", "detections_per_img must be at least 1, got 0"),
        (
            "cascade_rcnn",
            None,
            "model.roi_heads.stage_reg_weights=[[1,1,1,1],[1,1,1,-1],[1,1,1,1]]",
            r"stage_reg_weights must be more than 0, got \[1, 1, 1, -1\]",
        ),
        ("mask_rcnn", None, "model.mask_convolutions=-1", "model.mask_convolutions must be at least 0, got -1"),
        (
            "faster_rcnn",
            None,
            "head_pool=conv_fc head_pool.convolutions=-1",
            "head_pool.convolutions must be at least 0",
        ),
        (
            "faster_rcnn",
            None,
            "head_pool=class_maps head_pool.convolutions=-1",
            "convolutions must be at least 0, got -1",
        ),
        ("faster_rcnn", None, "pooler.operator.spatial_scale=0.5", "operator has spatial_scale of its own"),
        (
            "iou_net",
            None,
            "model.roi_heads.nms=linear",
            "nms=linear suppresses by class score, .*iou_guided must be false",
        ),
        ("cascade_rcnn", None, "model.roi_heads.stage_ious=[0.5,0.6]", "an entry for each stage, .* got 2 and 3"),
        ("cascade_rcnn", None, "model.roi_heads.stage_ious=[0.5,0.6,7]", r"at most 1, got \[0\.5, 0\.6, 7\]"),
        (
            "cascade_rcnn",
            None,
            "stage3_pooler=roi_pool model.roi_heads.stage_ious=[0.5] model.roi_heads.stage_reg_weights=[[1,1,1,1]]",
            "stage3_pooler: model.roi_heads.stage_ious has 1 entries, so there is no stage 3",
        ),
        ("iou_net", None, "model.roi_heads.iou_boxes_per_image=0", "iou_boxes_per_image must be at least 1, got 0"),
        ("iou_net", None, "model.roi_heads.refine_steps=-1", "refine_steps must be at least 0, got -1"),
        (
            "faster_rcnn_c5",
            "all_levels",
            "pooler.fusion=concat",
            "pooler, on maps of 16 channels: fusion='concat' is built for channels=256, the operator gives 16",
        ),
        ("faster_rcnn", None, "backbone.output_stride=16", "increasing strides, got .*backbone.output_stride"),
        ("rfcn", "ps_roi_pool", "backbone.output_stride=32", "whose stride must be that of the last"),
        ("faster_rcnn", None, "downsample=max downsample.stride=1", r"must halve maps .* became \(8, 8, 8\)"),
        ("faster_rcnn", None, "stem_pool=lp stem_pool.p=0", "stem_pool, on a map of 8 channels: p must be at least 1"),
        ("faster_rcnn_c5", None, "downsample=max backbone.output_stride=4", "downsample replaces strides"),
        ("faster_rcnn", None, "context=spp context.kernel_sizes=[4]", "context, on a map of 16 channels: kernel_sizes"),
        ("faster_rcnn", None, "head_pool=adaptive_max head_pool.pool.output_size=-1", r"head_pool\.pool"),
        ("faster_rcnn", None, "head_pool=token_cls head_pool.heads=3", r"head_pool\.heads must divide the 8 channels"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_those_that_do(model, pooler, override, message):
    config = composed(model, pooler, override.split() if override else [])
    config.class_names = list("abcdef")
    with pytest.raises(InstantiationException) as error:
        build_module(config)
    assert isinstance(error.value.__cause__, ConfigError)  # which `train.py` prints alone
    assert re.search(message, str(error.value.__cause__))
