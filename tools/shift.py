#!/usr/bin/env python
"""Measures how much a detector depends on where in the image an object lies: shift consistency.

    python tools/shift.py ckpt_path=logs/demo/runs/<timestamp>
    python tools/shift.py ckpt_path=logs/pooling_shapes images=100 direction=right     # each run of a study

Each image of the evaluated split is put onto a larger canvas at several places, from 0 to the coarsest stride in pixels
apart; detections are moved back, and compared with those of the first place. `shift.json` is written into each run
directory, and `tools/report.py` shows it beside AP. What is measured: `detpool.probing.shifts`.

`images` of the split are taken, evenly spread (default: all), moved `diagonal`, `right` or `down` (`direction`), by
`shifts` pixels of the model's input, 0,1,2,... (default: about ten, the stride among them), with `margin` pixels of
canvas around the image (default: the coarsest stride). Detections of at least `score` (default: 0.5) are compared.
Further `key=value` change the config of the run, as for `eval.py`; of other parts than `data` they need an `output`
folder, since what is found is then not the run's.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from command_line import Parser, natural, one_of, positive_int

from detpool.config import parse_path
from detpool.errors import ConfigError, exit_with_message, writing
from detpool.files import write_json_atomically
from detpool.report.collect import SHIFT, collect
from detpool.run_config import find_run
from detpool.run_record import provenance

SHOWN = ("AP", "AP75", "mask_AP", "kept", "iou", "score_error")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    for name in ("ckpt_path", "output"):
        parser.add_argument(f"--{name}", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=positive_int, help=argparse.SUPPRESS)
    parser.add_argument("--direction", type=one_of(["diagonal", "right", "down"]), default="diagonal")
    parser.add_argument("--shifts", type=_shifts, help=argparse.SUPPRESS)
    parser.add_argument("--margin", type=natural, help=argparse.SUPPRESS)
    parser.add_argument("--score", type=float, default=0.5, help=argparse.SUPPRESS)
    options, overrides = parser.parse_with_overrides(argv)
    with exit_with_message():
        if options.ckpt_path is None:
            raise ConfigError("no value given for ckpt_path: pass ckpt_path=... (a run, a checkpoint or a study)")
        foreign = [word for word in overrides if not word.lstrip("+").startswith("data.")]
        if foreign and options.output is None:
            raise ConfigError(f"{foreign[0]} changes the run: name a folder for what is found then, output=...")
        paths = find_runs(options.ckpt_path)
        if options.output is not None and len(paths) > 1:
            raise ConfigError(f"output={options.output} is for one run, and {options.ckpt_path} holds {len(paths)}")
        command = ["python", "tools/shift.py", *(sys.argv[1:] if argv is None else argv)]
        for path in paths:
            record = measure(path, overrides, options)
            folder = options.output or find_run(path)
            print_record(str(path), record)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                made = {"made": f"{datetime.now():%Y-%m-%d %H:%M:%S}", **provenance(command)}
                write_json_atomically(folder / SHIFT, _without_nan(record) | made)
            print(f"{folder / 'shift.json'}\n")


def find_runs(path: Path) -> list[Path]:
    """A checkpoint or a run directory itself; of a folder of runs those that are finished.

    Raises:
        ConfigError: there is none.
    """
    if not path.is_dir() or (path / "config.yaml").is_file():
        return [path]
    found = collect([path])
    for problem in found.problems:
        print(f"note: {problem}", file=sys.stderr)
    if not found.runs:
        raise ConfigError(f"ckpt_path={path} is neither a run directory nor a folder of finished runs")
    return [run.folder for run in found.runs]


def measure(path: Path, overrides: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The record of a run.

    Args:
        path: its directory or checkpoint.
        overrides: `key=value` that its config is changed by.
        options: `images`, `direction`, `shifts`, `margin` and `score` of the command line.

    Raises:
        ConfigError, WeightsError, DataError: as `detpool.load`, or the data has other classes than the model.
    """
    from rich.progress import track

    from detpool.predictor import load  # seconds: not before the run is known to be there
    from detpool.probing import shifts as probing
    from detpool.training import runs

    predictor = load(path, *overrides)
    split = predictor.config.evaluation.split
    data = runs.build_data(predictor.config, runs.stages_of(split))
    if list(data.class_names) != predictor.class_names:
        raise ConfigError(
            f"data: has the classes {data.class_names}, the model was trained for {predictor.class_names}"
        )
    dataset = data.val_dataset if split == "val" else data.test_dataset
    count = min(options.images or len(dataset), len(dataset))
    indices = [number * len(dataset) // count for number in range(count)]
    stride = probing.coarsest_stride(predictor.model)
    shifts = options.shifts or probing.default_shifts(stride)
    margin = stride if options.margin is None else options.margin
    detections = probing.detect_shifted(predictor, dataset, indices, shifts, options.direction, margin)
    shown = track(detections, f"{len(shifts)} shifts", count, disable=not sys.stdout.isatty())
    evaluator = runs.evaluator_of(predictor.config)(dataset)
    image_ids = [dataset.image_ids[index] for index in indices]
    found = probing.shift_consistency(evaluator, list(shown), image_ids, shifts, stride, options.score)
    how = {"direction": options.direction, "stride": stride, "margin": margin, "score": options.score}
    return {**found, **how, "split": split, "images": count, "overrides": list(overrides)}


def print_record(title: str, record: dict[str, Any]) -> None:
    """A line each shift, and below how AP varies."""
    table = pd.DataFrame(record["shifts"]).set_index("shift")
    shown = table[[name for name in SHOWN if name in table]] * 100
    print(f"\n{title}: {record['images']} images of {record['split']}, moved {record['direction']}, percent\n")
    print(shown.round(1).to_string(na_rep="-"))
    summary = record["summary"]
    for name in (name for name in SHOWN if not math.isnan(summary.get(f"{name}_std", math.nan))):
        mean, std, span = (100 * summary[f"{name}_{of}"] for of in ("mean", "std", "range"))
        print(f"{name} over shifts within {record['stride']} pixels: {mean:.1f} ± {std:.2f}, range {span:.2f}")


def _shifts(text: str) -> list[int]:
    words = text.strip("[]").split(",")
    if not all(word.strip().isdecimal() for word in words) or len(set(words)) < 2:
        raise argparse.ArgumentTypeError(f"must be two whole numbers of pixels or more, 0,1,2,..., got {text!r}")
    return sorted({int(word) for word in words})


def _without_nan(value: Any) -> Any:
    """A record as JSON can hold it: null for numbers that are not defined."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if value != value else value


if __name__ == "__main__":
    main()
