#!/usr/bin/env python
"""Compares poolings without training, by linear heads on pooled feature maps of a frozen backbone.

    python tools/ridge_probe.py backbone=lite0 data=shapes data.size=256 pooler=roi_pool,roi_align,pr_roi_pool
    python tools/ridge_probe.py study=pooling_shapes backbone=lite0 seed=0 output=results/probe/shapes
    python tools/ridge_probe.py ckpt_path=logs/demo/runs/<timestamp> data=shapes pooler=roi_pool,roi_align

Arguments are those of train.py; several values of a key, or a study, give the poolings (or backbones, data sets, seeds)
to compare. The last map of the backbone is pooled (backbone.output_stride sets its stride). `ckpt_path` is a run or a
checkpoint, whose backbone replaces the chosen one; all maps that its detector pools are then used.
`backbone.weights=null` gives an untrained network. Proposals are generated from the objects (by model.proposals, if
set). Further options with their defaults: images=200 (training images for fitting), held_out=100 (validation images for
measuring), features=1568 (numbers per box), boxes=64 (boxes per image for fitting), threads=2, output=logs/ridge_probe.
Prints a table and writes probe.csv and probe.json; docs/ridge_probe.md explains the measures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench.output import Table, recorded
from command_line import Parser, positive_int
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from detpool.config import config_folder, parse_command_line, parse_path
from detpool.detection.assemble import build_pooler
from detpool.detection.backbones import SingleMapBackbone
from detpool.detection.proposals import JitteredProposals
from detpool.detection.transform import NormalizeAndBatch
from detpool.errors import ConfigError, exit_with_message
from detpool.evaluation import DetectionEvaluator
from detpool.files import write_csv_atomically
from detpool.probing.linear_heads import LinearHeads
from detpool.probing.ridge_probe import Settings, probe
from detpool.run_config import load_config
from detpool.study.plan import compose_jobs, sweep_jobs
from detpool.training import runs

COLUMNS = ("R2/box", "R2/class", "R2/mask", "IoU/before", "IoU/after", "AP", "AP75", "mask_AP", "mask_AP75")
_OF_MAPS = ("data", "backbone", "stem_pool", "downsample", "seed", "imports")
"""Parts of a config that, with `model.proposals`, determine the feature maps and the boxes that are pooled."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    defaults = {"images": 200, "held_out": 100, "boxes": 64, "features": 1568, "threads": 2}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=positive_int, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=parse_path, default=Path("logs/ridge_probe"), help=argparse.SUPPRESS)
    parser.add_argument("--ckpt_path", type=parse_path, help=argparse.SUPPRESS)
    options, overrides = parser.parse_with_overrides(argv)
    with exit_with_message():
        torch.set_num_threads(options.threads)
        rows = []
        with recorded(options.output / "probe.json", "tools/ridge_probe.py", argv, options):
            for group in _groups(overrides):
                rows += _probe_group(group, options)
        write_csv_atomically(options.output / "probe.csv", rows)
        print(f"{options.output}: probe.csv, probe.json")


Job = tuple[dict[str, str], DictConfig]
"""The settings that distinguish a configuration from the others of a command, and its config."""


def _groups(overrides: Sequence[str]) -> list[list[Job]]:
    """Returns the checked configurations of a command line, grouped by the maps and boxes that they use."""
    line = parse_command_line(overrides, config_folder(), "train")
    jobs = sweep_jobs(line.configs, line.overrides)
    if jobs is None:
        raise ConfigError("a sweeper chooses by the results of earlier runs, which probes do not have: leave it out")
    common = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    groups: dict[str, list[Job]] = {}
    for job, _, _ in list(compose_jobs(line.configs, jobs)):
        config = line.configs.compose(job)
        plain: Any = OmegaConf.to_container(config, resolve=True)
        key = json.dumps([[plain.get(part) for part in _OF_MAPS], plain["model"].get("proposals")])
        varied = dict(word.split("=", 1) for word in job if word not in common and not word.startswith("hydra."))
        groups.setdefault(key, []).append((varied or {"pooler": "as given"}, config))
    return list(groups.values())


def _probe_group(jobs: Sequence[Job], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns and prints one row for each configuration of a group, which share maps and boxes."""
    config = jobs[0][1]
    torch.manual_seed(config.seed)  # for random weights
    if "train_transform" in config.data:
        # No augmentation of training images, which would add random differences.
        config.data.train_transform = config.data.get("eval_transform")
    data = runs.build_data(config, ["fit"])
    config.class_names = list(data.class_names)
    backbone = _backbone(config, options.ckpt_path)
    masks = "masks" in data.val_dataset[0][1]
    proposals = config.model.get("proposals")
    heads = {}
    for number, (_, each) in enumerate(jobs):
        pooler, shape = build_pooler(instantiate(each.pooler), backbone, "pooler")
        heads[str(number)] = LinearHeads(pooler.eval(), shape, len(data.class_names), options.features, masks)
    limits = tuple(config.evaluation.max_dets)
    found = probe(
        backbone.to(memory_format=torch.channels_last) if config.channels_last else backbone,
        NormalizeAndBatch(backbone.body.image_mean, backbone.body.image_std, max(backbone.body.strides)),
        JitteredProposals() if proposals is None else instantiate(proposals),
        heads,
        data.train_dataset,
        data.val_dataset,
        lambda with_masks: DetectionEvaluator(
            data.val_dataset,
            iou_types=("bbox", "segm") if with_masks else ("bbox",),
            backend=config.evaluation.backend,
            max_dets=limits,
        ),
        limits[-1],
        Settings(options.images, options.held_out, options.boxes, data.eval_batch_size, data.num_workers, config.seed),
    )
    rows = [varied | found[str(number)] for number, (varied, _) in enumerate(jobs)]
    names = list(jobs[0][0])
    table = Table("held-out images; R2, IoU, AP in percent", names, [*COLUMNS, "seconds"])
    for row in rows:
        values = [f"{100 * row[name]:.1f}" if name in row else "-" for name in COLUMNS]
        table.add_row(*(str(row[name]) for name in names), *values, f"{row['seconds']:.1f}")
    print(table, flush=True)
    return rows


def _backbone(config: DictConfig, checkpoint: Path | None) -> Any:
    """Returns the frozen backbone whose maps are pooled."""
    if checkpoint is None:
        backbone = SingleMapBackbone(runs.build_body(config))
    else:
        checkpoint = runs.find_checkpoint(checkpoint)
        backbone = runs.restore(load_config(checkpoint), checkpoint).model.backbone
    return backbone.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
