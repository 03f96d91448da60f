#!/usr/bin/env python
"""Measures claims of papers about the speed of whole detectors, with random weights, one image, and given proposals.

    python tools/bench_detectors.py                     # everything, tens of minutes on two cores
    python tools/bench_detectors.py claims              # R-FCN against Faster R-CNN C4; one shared map against crops
    python tools/bench_detectors.py proposals --counts 100 300

- `claims`: R-FCN ResNet-101 against Faster R-CNN ResNet-101-C4, whose last stage works on each of 300 RoIs (R-FCN, Dai
  et al., 2016: at least 2.5 times the images a second); and features of 300 RoIs, from one shared map by spatial
  pyramid pooling (SPP-Net), against running the backbone on 300 crops of 224 x 224, as R-CNN did (He et al., 2014: 30
  to 170 times, with 2,000 windows an image).
- `proposals`: seconds per image of each detector with ResNet-50, for increasing numbers of proposals.

Calls are timed in turns in one process. There is no suppression before the second stage, so it gets all proposals.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench.output import Table, recorded, write_csv
from bench.plots import COLOURS, MARKERS
from bench.timing import measure
from command_line import Parser, positive_int
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.ops import roi_align

from detpool.config import Configs, config_folder
from detpool.detection.backbones import resnet
from detpool.training.runs import build_module
from detpool.visualization.style import save

CLASSES = 20
CROP = 224
COUNTS = (100, 300, 1000, 2000)

DETECTORS = {
    "Faster R-CNN FPN": ["model=faster_rcnn"],
    "Faster R-CNN C4": ["model=faster_rcnn_c4"],
    "Faster R-CNN DC5": ["model=faster_rcnn_dc5"],
    "SPP-Net": ["model=faster_rcnn_dc5", "pooler=spp"],
    "Mask R-CNN FPN": ["model=mask_rcnn"],
    "R-FCN": ["model=rfcn"],
    "Light-Head R-CNN": ["model=light_head_rcnn"],
    "IoU-Net": ["model=iou_net"],
}
"""Arguments for train.py, by detector."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    torch.manual_seed(0)
    with recorded(options.output / "detectors.json", "tools/bench_detectors.py", argv, options):
        for what, run in {"claims": _claims, "proposals": _proposals}.items():
            if what in options.what:
                run(options)
    return 0


def _claims(options: argparse.Namespace) -> None:
    image = torch.rand(3, *options.size)
    boxes = random_boxes(options.claim_proposals, options.size)
    pairs: list[tuple[str, dict[str, Callable[[], object]]]] = [
        (
            "R-FCN R-101 against Faster R-CNN R-101-C4",
            {name: call(build(name, depth=101), image, boxes) for name in ("R-FCN", "Faster R-CNN C4")},
        ),
        (
            "features from one shared map (SPP-Net, R-50) against the backbone on each crop",
            {
                "shared map": functools.partial(shared_map, build("SPP-Net"), image, boxes),
                "crops": functools.partial(crops, resnet("resnet50", weights=None).eval(), image, boxes),
            },
        ),
    ]
    title = f"Seconds per image, {len(boxes)} proposals, {options.size[0]} x {options.size[1]} pixels"
    table, records = Table(title, ["claim"], ("first", "second", "ratio")), []
    for claim, calls in pairs:
        found = measure(calls, options.rounds, options.budget)
        records += [
            {"claim": claim, "contender": name, **summary.columns("s"), "rounds": summary.rounds}
            for name, summary in found.items()
        ]
        fast, slow = (summary.median for summary in found.values())
        table.add_row(claim, f"{fast:.2f}", f"{slow:.2f}", f"{slow / fast:.1f}x")
    print(table)
    write_csv(options.output / "claims.csv", records)


def _proposals(options: argparse.Namespace) -> None:
    image = torch.rand(3, *options.size)
    title = f"Seconds per image, ResNet-50, {options.size[0]} x {options.size[1]} pixels"
    table, records = Table(title, ["detector"], [f"{count} proposals" for count in options.counts]), []
    found: dict[str, list[float]] = {}
    for name in options.detectors:
        model = build(name)
        # One detector at a time: all eight would not fit into the memory of a small machine.
        calls = {str(count): call(model, image, random_boxes(count, options.size)) for count in options.counts}
        times = measure(calls, options.rounds, options.budget)
        records += [
            {"detector": name, "proposals": count, **summary.columns("s"), "rounds": summary.rounds}
            for count, summary in times.items()
        ]
        found[name] = [summary.median for summary in times.values()]
        table.add_row(name, *(f"{seconds:.2f}" for seconds in found[name]))
    print(table)
    write_csv(options.output / "proposals.csv", records)
    _plot(options.output / "proposals.png", options.counts, found, options.size)


def _plot(path: Path, counts: Sequence[int], found: dict[str, list[float]], size: Sequence[int]) -> None:
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    panel = figure.subplots()
    for (name, seconds), color, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
        panel.plot(counts, seconds, label=name, color=color, marker=marker, ms=5)
    panel.set_xlabel("proposals per image")
    panel.set_ylabel("seconds per image (median)")
    panel.set_yscale("log")
    panel.grid(True, which="both", linewidth=0.4, alpha=0.5)
    panel.set_title(f"ResNet-50, {size[0]} x {size[1]} pixels, {torch.get_num_threads()} threads", fontsize=10)
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, path)


def build(name: str, depth: int = 50) -> Any:
    """Builds a detector with random weights on a ResNet, which takes up to max(`COUNTS`) proposals."""
    given = ["proposals=given", f"model.proposals.top_n_test={max(COUNTS)}"]
    backbone = [f"backbone=resnet{depth}", "backbone.frozen_norm=false"]
    config = Configs(config_folder(), "train").compose([*DETECTORS[name], *given, *backbone])
    config.class_names = list(map(str, range(CLASSES)))
    return build_module(config, pretrained=False).model.eval()


def call(model: Any, image: Tensor, boxes: Tensor) -> Callable[[], object]:
    """Returns a function that detects objects in one image, with the boxes as proposals.

    With random weights, the scores of all classes are similar. The threshold is set so that about one score per
    proposal passes, as after training, so that later steps, above all IoU-Net's own head, have their usual work.
    """
    model = model.to(memory_format=torch.channels_last)
    heads = model.roi_heads

    def detect() -> object:
        with torch.inference_mode():
            return model([image], [{"proposals": boxes}])

    scores: list[Tensor] = []
    hook = heads.box_predictor.register_forward_hook(lambda *call: scores.append(call[-1][0].softmax(-1)[:, 1:]))
    heads.score_thresh = 1.0
    detect()
    hook.remove()
    heads.score_thresh = float(scores[0].flatten().topk(len(boxes) + 1).values[-1])
    return detect


def shared_map(model: Any, image: Tensor, boxes: Tensor) -> Tensor:
    """Computes features like SPP-Net: runs the backbone once, and pools all proposals from its map."""
    model = model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        batch, _ = model.transform([image])
        return model.roi_heads.box_roi_pool(model.backbone(batch.tensors), [boxes], batch.image_sizes)


def crops(body: nn.Module, image: Tensor, boxes: Tensor, batch: int = 10) -> None:
    """Computes features like R-CNN: runs the whole backbone on each proposal, warped to a square."""
    body = body.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for some in boxes.split(batch):
            patches = roi_align(image[None], [some], CROP, sampling_ratio=1)
            body(patches.contiguous(memory_format=torch.channels_last))


def random_boxes(count: int, size: Sequence[int]) -> Tensor:
    """Returns boxes in the image, with log-uniform sides from 32 pixels to three quarters of the shorter side."""
    height, width = size
    low, high = 32.0, 0.75 * min(size)
    sides = low * (high / low) ** torch.rand(count, 2)
    corner = torch.rand(count, 2) * (torch.tensor([width, height]) - sides)
    return torch.cat([corner, corner + sides], 1)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    what = ("claims", "proposals")
    parser.add_names("what", what, "of ALL; default: both", "*")
    parser.add_names("--detectors", DETECTORS, "default: ALL", default=list(DETECTORS))
    add = parser.add_argument
    add("--counts", nargs="+", type=positive_int, default=list(COUNTS), help=f"proposals; default: {COUNTS}")
    add("--claim-proposals", type=positive_int, default=300, help="proposals of the claims; default: 300")
    add("--size", nargs=2, type=positive_int, default=[600, 800], help="height, width; default: 600 800")
    parser.add_timing(rounds=3, budget=120, output="logs/bench_detectors")
    options = parser.parse_args(argv)
    options.what, options.counts = options.what or what, list(dict.fromkeys(options.counts))
    if max(options.counts) > max(COUNTS):
        parser.error(f"--counts must lie in 1 .. {max(COUNTS)}, got {options.counts}")
    if min(options.size) < 64:
        parser.error(f"--size must be at least 64 64, got {options.size}")
    return options


if __name__ == "__main__":
    sys.exit(main())
