"""Every detector with every pooler that fits it: two training steps from their config, and an evaluation."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from detpool.config import check_config, check_keys
from detpool.errors import ConfigError
from detpool.training.module import to_unit_range
from detpool.training.runs import build_data, build_module

CONFIGS = Path(__file__).parents[2] / "configs"

COMMON = [
    "data.train_images=4",
    "data.val_images=3",
    "data.size=64",
    "data.batch_size=2",
    "data.num_workers=0",
    "backbone.widths=[8,8,16,16]",
    "model.box_batch_size_per_image=16",
    "run_dir=run",
]
RPN = ["model.rpn_post_nms_top_n_train=20", "model.rpn_post_nms_top_n_test=10"]
PYRAMID = ["model.fpn_channels=8", "head_pool.channels=16", "model.anchor_sizes=[[8],[16],[32],[48],[64]]"]
SINGLE = ["model.anchor_sizes=[[8,16,32,64]]"]
HEAD = ["head_pool.channels=16"]
MASK = ["model.mask_channels=8"]
MODELS = {
    "faster_rcnn": [*PYRAMID, *RPN],
    "faster_rcnn_c4": [*SINGLE, *RPN],
    "faster_rcnn_c5": [*SINGLE, *HEAD, *RPN],
    "faster_rcnn_dc5": [*SINGLE, *HEAD, *RPN],
    "fast_rcnn": HEAD,
    "spp_net": [*SINGLE, *HEAD, *RPN],
    "mask_rcnn": [*PYRAMID, *MASK, *RPN],
    "mask_rcnn_c4": [*SINGLE, *MASK, *RPN],
    "mask_rcnn_c5": [*SINGLE, *HEAD, *MASK, *RPN],
    "rfcn": [*SINGLE, *RPN, "model.reduced_channels=8", "pooler.output_size=3"],
    "light_head_rcnn": [*SINGLE, *RPN, "model.head_channels=16", "model.mid_channels=8", "model.kernel_size=5"],
    "iou_net": [*PYRAMID, *RPN, "model.iou_channels=16", "model.iou_boxes_per_image=16"],
}
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
    ("faster_rcnn", "roi_align", ["model.box_hard_examples=true"]),
    ("mask_rcnn_c5", "roi_align", ["model.proposals=jittered"]),
    ("faster_rcnn_c4", "roi_align", ["model.proposals=given"]),
    ("mask_rcnn", "roi_align", ["pooler@mask_pooler=roi_pool", "mask_pooler.output_size=7"]),
    ("rfcn", "ps_roi_pool", ["pooler.output_size=1"]),
    ("rfcn", "ps_roi_pool", ["pooler.output_size=7"]),
    ("rfcn", "pool", ["pooler.operator.channels=position_sensitive", "model.separate_rpn=false"]),
    ("iou_net", "roi_align", ["pooler@iou_pooler=roi_align", "model.iou_guided=false"]),
    ("iou_net", "roi_align", ["pooler@iou_pooler=roi_pool", "model.refine_steps=0"]),
]
CASES = [(model, pooler, []) for model, pooler in PAIRS] + MORE


def composed(model, pooler, overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [*COMMON, f"model={model}", f"pooler={pooler}", *MODELS[model], *overrides])
    check_keys(config, CONFIGS, "train")
    check_config(config)
    return config


def batches(loader, given: bool) -> Iterator:
    for images, targets in loader:
        for target in targets if given else []:
            # Objects' boxes, moved, in place of a file of proposals.
            target["proposals"] = torch.cat([target["boxes"] + shift for shift in (-3.0, 0.0, 4.0)])
        yield to_unit_range(images), targets


@pytest.mark.parametrize(("model", "pooler", "overrides"), CASES, ids=lambda value: str(value))
def test_two_steps_and_an_evaluation(model, pooler, overrides):
    config = composed(model, pooler, overrides)
    torch.manual_seed(0)
    data = build_data(config)
    config.class_names = list(data.class_names)
    module = build_module(config)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    given, trained = config.model.proposals == "given", config.model.proposals == "rpn"
    for images, targets in batches(data.train_dataloader(), given):
        losses = module.model(images, targets)
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
        assert missing == []
        reached = [name for name, parameter in module.named_parameters() if parameter.grad.any()]
        # R-FCN's head are its score maps, which are computed before RoIs are pooled.
        parts = ["backbone.body", "backbone.neck" if model == "rfcn" else "roi_heads", *(["rpn"] if trained else [])]
        for part in parts:
            assert any(name.startswith(f"model.{part}") for name in reached), part
        optimizer.step()

    module.eval()
    module.prepare_evaluation(data.val_dataset)
    with torch.inference_mode():  # as Lightning validates
        for images, targets in batches(data.val_dataloader(), given):
            predictions, losses = module.model.evaluate(images, targets)
            assert all(torch.isfinite(loss) for loss in losses.values())
            module.evaluator.update(predictions, targets, [tuple(image.shape[-2:]) for image in images])
    metrics = module.evaluator.compute()
    assert 0 <= metrics["AP"] <= 1
    assert ("mask_AP" in metrics) == model.startswith("mask")


@pytest.mark.parametrize(
    ("model", "pooler", "overrides", "message"),
    [
        ("rfcn", "roi_align", [], "pooler: R-FCN's 3 x 3 bins read 99 maps, .* pooler=ps_roi_pool"),
        ("faster_rcnn", "ps_roi_pool", [], "pooler, on maps of 8 channels: .* 7 x 7 .* got 8"),
        ("iou_net", "roi_align", ["pooler@iou_pooler=roi_pool"], "iou_pooler: refinement .* model.refine_steps=0"),
        (
            "mask_rcnn",
            "roi_align",
            ["mask_pooler.output_size=[14,10]"],
            "mask_pooler: masks are square, .* got 14 x 10",
        ),
        ("mask_rcnn_c4", "roi_align", ["mask_pooler.output_size=[8,6]"], "mask_pooler: masks are square, .* got 8 x 6"),
        (
            "iou_net",
            "roi_align",
            ["model.iou_boxes_per_image=0"],
            "model.iou_boxes_per_image must be at least 1, got 0",
        ),
        ("iou_net", "roi_align", ["model.refine_steps=-1"], "model.refine_steps must be at least 0, got -1"),
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
