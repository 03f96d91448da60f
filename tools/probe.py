#!/usr/bin/env python
"""Evaluates trained weights with other poolers and proposals: changes of the metrics, and errors of the boxes.

    python tools/probe.py ckpt_path=logs/demo/runs/<timestamp> pooler=roi_align,roi_pool,pr_roi_pool
    python tools/probe.py ckpt_path=... pooler.operator.aligned=true,false noise=0,0.05,0.1,0.2
    python tools/probe.py ckpt_path=... pooler=roi_align,roi_pool iou=1,0.9,0.7,0.5 data.val_images=100

`ckpt_path` is a checkpoint, or a run directory, whose best checkpoint is used. Several values are separated by commas,
as in sweeps of train.py, and each combination is evaluated. A pooler of the groups `pooler` and `mask_pooler` replaces
the run's, and keeps its output size and levels. `noise` or `iou` replaces the run's proposals by one box per object, at
that distance from the object in a random direction (`detpool.detection.localization.displaced_boxes`; 0, or IoU 1, is
the object itself), the same for all poolers. Further `key=value` arguments change the config of the run, as for
`eval.py`; proposals=jittered alone uses the proposals of studies.

`probe.csv`, `probe.png` and `probe.json` are written to `output` (default: logs/probe/<time>). dx, dy, dw and dh are
mean errors (detection minus object) of center and sides, for the detections that match an object at IoU 0.5: in pixels
of the image file, and in cells of the map from which the object's box is pooled. Sizes are COCO's: small objects have
an area below 32 x 32 pixels of the file, large ones above 96 x 96.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from command_line import Parser

from detpool.config import config_folder, parse_path
from detpool.config.other_parts import POOLERS
from detpool.errors import ConfigError, exit_with_message, writing
from detpool.files import write_csv_atomically, write_json_atomically
from detpool.probing.variants import Variant, configure, variants_of
from detpool.run_config import load_config
from detpool.run_record import provenance


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--ckpt_path", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=parse_path, help=argparse.SUPPRESS)
    options, arguments = parser.parse_with_overrides(argv)
    output = options.output or Path(f"logs/probe/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    with exit_with_message():
        if options.ckpt_path is None:
            raise ConfigError("no value given for ckpt_path: pass ckpt_path=... (a run directory or a checkpoint)")
        path = options.ckpt_path
        variants = variants_of(arguments)
        configs = [configure(path, variant, config_folder()) for variant in variants]  # check all first
        own = load_config(path)
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        rows = evaluate(path, variants, configs, {part: own.get(part) for part in POOLERS})
        from detpool.probing.plots import plot_probe  # matplotlib takes a second
        from detpool.visualization.style import save

        with writing(output):
            write_csv_atomically(output / "probe.csv", rows)
            save(plot_probe(pd.DataFrame(rows)), output / "probe.png")
            command = ["python", "tools/probe.py", *(sys.argv[1:] if argv is None else argv)]
            write_json_atomically(output / "probe.json", {"ckpt_path": str(path), **provenance(command)})
    print_rows(rows)
    print(f"{output / 'probe.csv'}, beside it probe.png")


def evaluate(
    path: Path, variants: Sequence[Variant], configs: Sequence[Any], own: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Evaluates variants, and returns the rows of the table: one for each variant and object size.

    Args:
        path: the run directory or checkpoint.
        variants: the variants to evaluate.
        configs: the config of each variant.
        own: the poolers of the run.
    """
    from detpool.probing.weights import probe, summarize  # takes seconds: only after the configs are checked
    from detpool.training import runs

    checkpoint = runs.find_checkpoint(path)
    print(f"checkpoint: {checkpoint}")
    rows: list[dict[str, Any]] = []
    data = before = None
    notes: dict[str, None] = {}
    for number, (variant, config) in enumerate(zip(variants, configs, strict=True), 1):
        what = " ".join(filter(None, [variant.label, variant.measure and f"{variant.measure} {variant.distance:g}"]))
        if sys.stderr.isatty():
            print(f"{number} of {len(variants)}: {what}", file=sys.stderr)
        key = (config.data, config.evaluation.split)
        if data is None or key != before:
            data, before = runs.build_data(config, runs.stages_of(config.evaluation.split)), key
        try:
            metrics, errors, said = probe(config, checkpoint, data)
        except (ConfigError, RuntimeError) as error:
            raise type(error)(f"{what}: {error}") from error
        notes |= dict.fromkeys(said)
        trained = all(config.get(part) == pooler for part, pooler in own.items())
        shared = {"pooler": variant.label + (" *" if trained and len(variants) > 1 else ""), "trained": trained}
        shared |= {"proposals": variant.proposals, "measure": variant.measure, "distance": variant.distance}
        rows += [shared | row for row in summarize(metrics, errors)]
    for note in notes:
        print(f"note: {note}")
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints two tables: metrics, and box errors by object size."""
    from detpool.evaluation.box_errors import ERRORS

    metrics, by_size = [], []
    width = max(len(row["pooler"]) for row in rows)
    for row in rows:
        where = {"pooler": row["pooler"].ljust(width)}
        where[row["measure"] or "proposals"] = f"{row['distance']:g}" if row["measure"] else row["proposals"] or "run's"
        if row["size"] == "all":
            metrics.append(where | {f"{name}, %": _number(100 * row[name], 1) for name in row if "AP" in name})
        counts = {name: str(row[name]) for name in ("size", "objects", "found")}
        pixels = {f"{name}, px": _number(row[name], 2) for name in ERRORS}
        by_size.append(where | counts | pixels | {f"{n}, cells": _number(row[f"{n}_cells"], 3) for n in ERRORS})
    for table in (metrics, by_size):
        print(f"\n{pd.DataFrame(table).to_string(index=False)}\n")
    if any(row["pooler"].endswith(" *") for row in rows):
        print("* as trained")


def _number(value: float, digits: int) -> str:
    # + 0.0 avoids "-0.00"
    return "-" if value != value else f"{round(value, digits) + 0.0:.{digits}f}"


if __name__ == "__main__":
    main()
