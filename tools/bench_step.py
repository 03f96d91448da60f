#!/usr/bin/env python
"""How much of a training step is RoI pooling? Faster R-CNN with our pooler and with torchvision's, in turns.

    python tools/bench_step.py                                # the small backbone and ResNet-50
    python tools/bench_step.py --backbones small --rounds 20

One detector with random weights makes training steps, forward and backward, on random images; only its `box_roi_pool`
changes from call to call, so both draw the same proposals and compute the same losses. A backward of backbone and
feature pyramid right after a call of the pooler shows whether its threads leave the cores to the convolutions.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from bench.output import console, write_json
from bench.timing import interleave, summarise
from rich.table import Table
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from detpool import ops
from detpool.detection import faster_rcnn_fpn
from detpool.detection.backbones import SmallCNN, resnet
from detpool.files import write_text_atomically
from detpool.poolers import RoIPooler

BACKBONES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], int]] = {
    "small": (SmallCNN, (256, 320), 64),
    "resnet50": (functools.partial(resnet, "resnet50", weights=None), (480, 640), 256),
}
"""Network, height and width of its images in pixels, and channels of the pyramid."""
IMAGES = 2
OBJECTS = 8


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    begin, load = time.perf_counter(), {"before": os.getloadavg()}
    lines = ["backbone,what,pooler,median_ms,p20_ms,p80_ms"]
    table = Table(title="Training step of Faster R-CNN, milliseconds")
    for column in ("backbone", "what", "detpool", "torchvision", "ratio"):
        table.add_column(column, justify="left" if column in ("backbone", "what") else "right")
    for name in options.backbones:
        for what, calls in build(name)[1].items():
            found = {pooler: summarise(s) for pooler, s in interleave(calls, options.rounds, options.budget).items()}
            for pooler, times in found.items():
                numbers = ",".join(f"{1e3 * value:.1f}" for value in (times.median, times.p20, times.p80))
                lines.append(f"{name},{what},{pooler},{numbers}")
            ours, theirs = found["detpool"].median, found["torchvision"].median
            table.add_row(name, what, f"{1e3 * ours:.0f}", f"{1e3 * theirs:.0f}", f"{theirs / ours:.2f}x")
    load["after"] = os.getloadavg()
    console().print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(options.output / "step.csv", "\n".join(lines) + "\n")
    command = ["python", "tools/bench_step.py", *(sys.argv[1:] if argv is None else argv)]
    write_json(options.output / "step.json", command, vars(options), time.perf_counter() - begin, load)
    return 0


def build(backbone: str) -> tuple[nn.Module, dict[str, dict[str, Callable[[], object]]]]:
    """The detector, and for each thing to time a call for each pooler."""
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

    def step(pooler: nn.Module) -> None:
        model.roi_heads.box_roi_pool = pooler
        torch.manual_seed(1)  # the same anchors and proposals are sampled
        model.zero_grad()
        torch.stack(list(model(images, targets).values())).sum().backward()

    def backbone_after(pooler: nn.Module) -> None:
        with torch.no_grad():
            pooler(maps, boxes, [size] * IMAGES)
        model.zero_grad()
        sum(level.mean() for level in model.backbone(batch).values()).backward()

    with torch.no_grad():
        maps = model.backbone(batch)
    return model, {
        "training step": {name: functools.partial(step, pooler) for name, pooler in poolers.items()},
        "backbone after pooling": {name: functools.partial(backbone_after, pooler) for name, pooler in poolers.items()},
        "pooling alone": {
            name: functools.partial(_pool, pooler, maps, boxes, size) for name, pooler in poolers.items()
        },
    }


def _pool(pooler: nn.Module, maps: dict[str, Tensor], boxes: list[Tensor], size: tuple[int, int]) -> Tensor:
    with torch.no_grad():
        return pooler(maps, boxes, [size] * IMAGES)


def _objects(size: tuple[int, int]) -> dict[str, Tensor]:
    sides = torch.rand(OBJECTS, 2) * 100 + 16
    corner = torch.rand(OBJECTS, 2) * (torch.tensor([size[1], size[0]]) - sides)
    return {"boxes": torch.cat([corner, corner + sides], dim=1), "labels": torch.randint(1, 21, (OBJECTS,))}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES), help="default: all")
    parser.add_argument("--rounds", type=int, default=9, help="times each call is timed at most; default: 9")
    parser.add_argument("--budget", type=float, default=90, help="seconds after which no round begins; default: 90")
    parser.add_argument("--output", type=Path, default=Path("logs/bench_step"), help="default: logs/bench_step")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
