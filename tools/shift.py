#!/usr/bin/env python
"""Measures how much a detector depends on where in the image an object lies: shift consistency.

    python tools/shift.py ckpt_path=logs/demo/runs/<timestamp>
    python tools/shift.py ckpt_path=logs/pooling_shapes images=100 direction=right     # each run of a study

Each image of the evaluated split is placed on a larger canvas at several positions, which differ by 0 pixels up to the
coarsest stride. Detections are moved back and compared with those at the first position. `shift.json` is written to
each run directory, and `tools/report.py` shows it next to AP. `detpool.probing.shifts` defines the measures.

`images` is the number of images, evenly spread over the split (default: all). They are moved in `direction` (diagonal,
right or down) by `shifts` pixels of the model's input, 0,1,2,... (default: about ten shifts, including the stride),
with `margin` pixels of canvas around the image (default: the coarsest stride). Detections with a score of at least
`score` (default: 0.5) are compared. Further `key=value` arguments change the config of the run, as for `eval.py`.
Changes of other parts than `data` require an `output` folder, since the results are then not those of the run.
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
    """Returns a checkpoint or run directory itself, or the finished runs in a folder of runs.

    Raises:
        ConfigError: If the folder contains no finished run.
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
    """Measures the shift consistency of a run, and returns the content of `shift.json`.

    Args:
        path: run directory or checkpoint.
        overrides: `key=value` changes of the run's config.
        options: command-line options `images`, `direction`, `shifts`, `margin` and `score`.

    Raises:
        ConfigError, WeightsError, DataError: As for `detpool.load`; ConfigError also if the classes of the data differ
            from the model's.
    """
    from rich.progress import track

    from detpool.predictor import load  # takes seconds: only after the run is known to exist
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
    """Prints one line per shift, and below them the variation of AP."""
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
    """Replaces NaN, which JSON does not support, by None in a record."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if value != value else value


if __name__ == "__main__":
    main()
