#!/usr/bin/env python
"""Measures the costs of the models of a study in turns: time, memory, operations, energy, and receptive fields.

    python tools/cost.py study=smallest                       # every configuration of a study
    python tools/cost.py pooler=roi_pool,roi_align            # of any command line of train.py
    python tools/cost.py study=smallest baseline=pooler=pr_roi_pool turns=60 output=costs

Arguments are those of `train.py`; configurations that differ only in the seed count as one. One process builds all
models. In turns, each makes a training step (forward, backward, optimizer) and detects: A B C A B C, with every second
turn in reverse order. On a CPU, seconds are CPU time of this process, on which other programs have little influence; on
a GPU, they are wall-clock time from an idle GPU until it is idle again. Ratios to the baseline are taken within a turn.

All models do the same work. Batches are the first training images (augmented) and validation images of the study.
Weights are random, the same wherever names and shapes agree, and are restored before each batch, as is the random
state. An RPN does all its work, but with random weights it does not find objects: the second stage gets boxes generated
from the objects (as by `proposals=jittered`), followed by the first model's own proposals, as many as that has in
total. As many scores pass the threshold as there are proposals, and mask heads get `detections_per_img` boxes per
image, or all proposals if there are fewer. Data loading, callbacks, `accumulate_grad_batches`, and reading or
generating proposals are not included.

| option | what | default |
|---|---|---|
| `baseline=` | label of the configuration that others are compared with | the first |
| `precision=` | half the width of intervals of ratios at which the turns, 10 at least, end | 0.015 |
| `turns=` | the most turns | 200 |
| `budget=` | seconds after which no further turn begins, once 10 are done | 600 |
| `batches=` | batches a turn, of training and of validation images | 1 |
| `threads=` | of the CPU: with several, waiting for each other counts as work | 1 |
| `output=` | folder of `cost.csv` and `cost.json` (with the seconds of each turn) | the study's, else logs/cost |

`tools/report.py` takes the costs of a study's folder into its report.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from command_line import Parser, positive, positive_int

from detpool.config import Configs, config_folder, parse_command_line, parse_path
from detpool.config.schema import fields
from detpool.errors import ConfigError, did_you_mean, exit_with_message, writing
from detpool.files import write_json_atomically
from detpool.study.configurations import Configuration, list_configurations
from detpool.study.plan import sweep_folder

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences PyTorch's profiler, which is used to record allocations


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(__doc__)
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS}
    parser.add_argument("--baseline", **hidden)
    parser.add_argument("--turns", type=positive_int, default=200, **hidden)
    parser.add_argument("--precision", type=positive, default=0.015, **hidden)
    parser.add_argument("--budget", type=positive, default=600, **hidden)
    parser.add_argument("--batches", type=positive_int, default=1, **hidden)
    parser.add_argument("--threads", type=positive_int, default=1, **hidden)
    parser.add_argument("--output", type=parse_path, **hidden)
    options, rest = parser.parse_with_overrides(words)
    with exit_with_message():
        line = parse_command_line(rest, config_folder(), "train")
        _check_options(line.configs, line.overrides, vars(options))
        found = list_configurations(line.configs, line.overrides)
        labels = [one.label for one in found]
        baseline = labels[0] if options.baseline is None else options.baseline
        if baseline not in labels:
            raise ConfigError(f"baseline={baseline} is no configuration of these{did_you_mean(baseline, labels)}")
        folder = options.output or _folder(line.configs, line.overrides)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        measure(found, baseline, folder, options, ["python", "tools/cost.py", *words])


def _check_options(configs: Configs, overrides: Sequence[str], options: Iterable[str]) -> None:
    """Raises an error if an option of this program is misspelled, before it is treated as a key of the config."""
    known = [*fields("Config"), *configs.groups()]
    for key in (word.partition("=")[0] for word in overrides):
        if key.isidentifier() and key not in known and (near := did_you_mean(key, options)).startswith("; did"):
            raise ConfigError(f"there is no option {key}{near}")


def _folder(configs: Configs, overrides: Sequence[str]) -> Path:
    """Returns the folder of the runs of a study."""
    is_study = any(word.startswith("study=") for word in overrides)
    return sweep_folder(configs, overrides) if is_study else Path("logs/cost")


def measure(
    found: Sequence[Configuration], baseline: str, folder: Path, options: argparse.Namespace, command: Sequence[str]
) -> None:
    """Measures configurations, prints tables and writes files."""
    from bench.output import write_csv
    from costs.shared import Shared  # these import torch, which takes seconds: only after everything is checked
    from costs.turns import take_turns
    from costs.work import Work
    from rich.console import Console
    from rich.progress import track

    from detpool.report.cost_tables import counts_table, times_table
    from detpool.report.costs import Cost, compare, uncertainty
    from detpool.run_record import provenance

    shared, works = Shared(options.batches), {}
    quiet = not sys.stdout.isatty()
    load = {"before": os.getloadavg()}
    for one in found:
        try:
            works[one.label] = Work(one.config, shared, options.threads)
        except ConfigError as error:
            raise ConfigError(f"{error} (of {one.label})") from error
    numbers = {label: works[label].count() for label in track(works, "counting", disable=quiet)}
    measured = next(iter(works.values())).measured
    calls = {label: work.time for label, work in works.items()}

    def enough(found: Any) -> bool:
        return uncertainty(found, baseline) <= options.precision

    seconds = take_turns(calls, options.turns, options.budget, enough)
    load["after"] = os.getloadavg()
    costs = {one.label: Cost(one.label, one.runs, seconds[one.label], numbers[one.label]) for one in found}
    rows = compare(costs, baseline)
    for table in (times_table(rows, f"{measured}."), counts_table(rows)):
        Console(width=140 if quiet else None).print(_drawn(table))
    words = {one.label: " ".join(one.overrides) for one in found}
    write_csv(
        folder / "cost.csv",
        [{"configuration": label, "overrides": words[label], **row} for label, row in rows.to_dict("index").items()],
    )
    record = {
        "baseline": baseline,
        "measured": measured,
        "settings": {name: str(value) for name, value in vars(options).items() if value is not None},
        "load_average": load,
        "configurations": [vars(cost) for cost in costs.values()],
        **provenance(command),
    }
    write_json_atomically(folder / "cost.json", record)
    if (width := uncertainty(seconds, baseline)) > options.precision:
        print(f"note: a ratio is known to ± {100 * width:.1f} %: more turns (turns=, budget=) make it more precise")
    print(f"{folder / 'cost.csv'}; cost.json beside it")


def _drawn(table: Any) -> Any:
    """Renders a table of a report for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, title=table.title, caption=table.note, title_justify="left", caption_justify="left")
    for number, name in enumerate(table.cells.columns):
        drawn.add_column(name, justify="left" if number < table.words else "right", overflow="fold")
    for cells in table.cells.to_numpy():
        drawn.add_row(*map(Text, cells))
    return drawn


if __name__ == "__main__":
    main()
