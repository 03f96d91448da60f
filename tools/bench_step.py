#!/usr/bin/env python
"""Measures the share of RoI pooling in a training step: Faster R-CNN with our pooler and with torchvision's, in turns.

    python tools/bench_step.py                                # the small backbone and ResNet-50
    python tools/bench_step.py --backbones small --rounds 20

One detector with random weights makes training steps, forward and backward, on random images. Only its `box_roi_pool`
changes between calls, so both sample the same proposals and compute the same losses. A backward of backbone and feature
pyramid directly after a call of the pooler shows whether the pooler's threads slow down the convolutions.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

import torch
from bench.output import Table, recorded, write_csv
from bench.timing import measure
from command_line import Parser
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from detpool import ops
from detpool.detection import faster_rcnn_fpn
from detpool.detection.backbones import Body, SmallCNN, resnet
from detpool.poolers import RoIPooler

BACKBONES: dict[str, tuple[Callable[[], Body], tuple[int, int], int]] = {
    "small": (SmallCNN, (256, 320), 64),
    "resnet50": (functools.partial(resnet, "resnet50", weights=None), (480, 640), 256),
}
"""Network, size of its images (height, width) in pixels, and channels of the pyramid."""
IMAGES = 2
OBJECTS = 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_names("--backbones", BACKBONES, "default: ALL", default=list(BACKBONES))
    parser.add_timing(rounds=9, budget=90, output="logs/bench_step")
    options = parser.parse_args(argv)
    records = []
    table = Table(
        "Training step of Faster R-CNN, milliseconds", ("backbone", "what"), ("detpool", "torchvision", "ratio")
    )
    with recorded(options.output / "step.json", "tools/bench_step.py", argv, options):
        for name in options.backbones:
            for what, calls in build(name)[1].items():
                found = measure(calls, options.rounds, options.budget)
                records += [
                    {"backbone": name, "what": what, "pooler": pooler, **times.columns()}
                    for pooler, times in found.items()
                ]
                ours, theirs = found["detpool"].median, found["torchvision"].median
                table.add_row(name, what, f"{1e3 * ours:.0f}", f"{1e3 * theirs:.0f}", f"{theirs / ours:.2f}x")
        print(table)
        write_csv(options.output / "step.csv", records)
    return 0


def build(backbone: str) -> tuple[nn.Module, dict[str, dict[str, Callable[[], object]]]]:
    """Returns the detector, and the functions to time, by measurement and pooler."""
    body, size, channels = BACKBONES[backbone]
    torch.manual_seed(0)
    operator = functools.partial(ops.roi_align, sampling_ratio=2)
    pooler = functools.partial(RoIPooler, output_size=7, operator=operator)
    model = faster_rcnn_fpn(20, body(), pooler, fpn_channels=channels).to(memory_format=torch.channels_last).train()
    ours = model.roi_heads.box_roi_pool
    poolers = {"detpool": ours, "torchvision": MultiScaleRoIAlign(ours.featmap_names, 7, 2)}
    images = [torch.rand(3, *size) for _ in range(IMAGES)]
    targets = [_objects(size) for _ in images]
    batch = torch.stack(images).contiguous(memory_format=torch.channels_last)
    boxes = [target["boxes"].repeat(512 // OBJECTS, 1) for target in targets]
    with torch.no_grad():
        maps = model.backbone(batch)

    def training_step(pooler: nn.Module) -> None:
        model.roi_heads.box_roi_pool = pooler
        torch.manual_seed(1)  # so that the same anchors and proposals are sampled
        model.zero_grad()
        torch.stack(list(model(images, targets).values())).sum().backward()

    def pooling_alone(pooler: nn.Module) -> Tensor:
        with torch.no_grad():
            return pooler(maps, boxes, [size] * IMAGES)

    def backbone_after_pooling(pooler: nn.Module) -> None:
        pooling_alone(pooler)
        model.zero_grad()
        sum(level.mean() for level in model.backbone(batch).values()).backward()

    return model, {
        call.__name__.replace("_", " "): {name: functools.partial(call, pooler) for name, pooler in poolers.items()}
        for call in (training_step, backbone_after_pooling, pooling_alone)
    }


def _objects(size: tuple[int, int]) -> dict[str, Tensor]:
    sides = torch.rand(OBJECTS, 2) * 100 + 16
    corner = torch.rand(OBJECTS, 2) * (torch.tensor([size[1], size[0]]) - sides)
    return {"boxes": torch.cat([corner, corner + sides], dim=1), "labels": torch.randint(1, 21, (OBJECTS,))}


if __name__ == "__main__":
    sys.exit(main())
