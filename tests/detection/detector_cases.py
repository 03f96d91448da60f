"""Tiny detectors from their configs, two training steps and an evaluation of them."""

from collections.abc import Iterator
from pathlib import Path

import torch

from detpool.config import Configs, check
from detpool.detection import GivenProposals
from detpool.training.module import to_unit_range
from detpool.training.runs import build_data, build_module

CHECKED = Configs(Path(__file__).parents[2] / "configs", "train")

COMMON = [
    "data.train_images=4",
    "data.val_images=3",
    "data.size=64",
    "data.batch_size=2",
    "data.num_workers=0",
    "backbone.widths=[8,8,16,16]",
    "model.roi_heads.batch_size_per_image=16",
    "run_dir=run",
]
RPN = ["model.rpn.post_nms_top_n_train=20", "model.rpn.post_nms_top_n_test=10"]
PYRAMID = ["model.fpn_channels=8", "head_pool.channels=16", "model.rpn.anchor_sizes=[[8],[16],[32],[48],[64]]"]
SINGLE = ["model.rpn.anchor_sizes=[[8,16,32,64]]"]
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
    "cascade_rcnn": [*PYRAMID, *RPN],
    "cascade_mask_rcnn": [*PYRAMID, *MASK, *RPN],
    "iou_net": [*PYRAMID, *RPN, "model.iou_channels=16", "model.roi_heads.iou_boxes_per_image=16"],
}


def composed(model, pooler, overrides, backbone="small"):
    """The config of a tiny detector; its own pooler if `pooler` is None."""
    pooling = [] if pooler is None else [f"pooler={pooler}"]
    common = [word for word in COMMON if backbone == "small" or not word.startswith("backbone.widths")]
    line = [*common, f"backbone={backbone}", f"model={model}", *pooling, *MODELS[model], *overrides]
    config = CHECKED.compose(line)
    check(config, CHECKED, line)
    return config


def batches(loader, given: bool) -> Iterator:
    for images, targets in loader:
        for target in targets if given else []:
            # Objects' boxes, moved, in place of a file of proposals.
            target["proposals"] = torch.cat([target["boxes"] + shift for shift in (-3.0, 0.0, 4.0)])
        yield to_unit_range(images), targets


def train_and_evaluate(config):
    """Two training steps of the detector of a config, in which every parameter gets a gradient, and an evaluation.

    Returns:
        the metrics, and the names of the parameters whose gradient was not zero in either step.
    """
    torch.manual_seed(0)
    data = build_data(config)
    config.class_names = list(data.class_names)
    module = build_module(config)
    module.train()
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    given = isinstance(module.model.rpn, GivenProposals)
    reached = {name.removeprefix("model.") for name in trained}
    for images, targets in batches(data.train_dataloader(), given):
        losses = module.model(images, targets)
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        missing = [name for name, parameter in trained.items() if parameter.grad is None]
        assert missing == []
        reached &= {name.removeprefix("model.") for name, parameter in trained.items() if parameter.grad.any()}
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
    return metrics, reached
