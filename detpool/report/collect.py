"""Finds runs and benchmarks in folders and reads them; what cannot be used is reported, never silently skipped."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from detpool.evaluation.errors import ERRORS
from detpool.evaluation.matches import MATCHES
from detpool.report.costs import FILE as COSTS
from detpool.report.costs import Costs, read_costs
from detpool.run_config import read_run_config
from detpool.run_record import read_metrics
from detpool.study.layout import PLAN, STATUS, read_plan, read_status

SHIFT = "shift.json"
"""File name of the shift consistency in a run directory, if `tools/shift.py` has measured it."""
_TYPES = {"a number": (int, float), "a whole number": (int,), "text": (str,), "a list": (list,), "an object": (dict,)}
_PROVENANCE = {"command": "text", "git": "an object", "git.revision": "text", "versions": "an object"}
_PROVENANCE |= {"hardware": "an object", "hardware.gpus": "a list"}
_METRICS = dict.fromkeys(("seconds", "step_seconds", "peak_memory_bytes"), "a number") | _PROVENANCE
_METRICS |= {"errors": "an object", "images": "an object", "notes": "a list"}
"""The type of each entry of `metrics.json`, by dotted key; an entry may be null, or absent in older files."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, as read from its directory.

    Attributes:
        folder: the run directory.
        config: the whole config.
        record: the content of `metrics.json`, as described by `detpool.run_record.write_metrics`; entries that were not
            recorded are null or absent. Metrics are numbers in 0 .. 1, NaN if undefined. `shift` holds the `summary`
            and `settings` of `tools/shift.py`; it is absent if that was not run.
        curves: one column each for `train/loss` and `val/<metric>`, by epoch (from 1); empty without Lightning's CSV
            file.
        finished: when `metrics.json` was written, in seconds since 1970.
        matches: the run's file of `detpool.evaluation.matches`, or that of a later evaluation of the run; None if there
            is none.
    """

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]
    curves: pd.DataFrame
    finished: float
    matches: Path | None = None

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def split(self) -> str:
        return str(self.config["evaluation"]["split"])

    @property
    def is_of_sweep(self) -> bool:
        """Whether the run's folder lies in the folder of a sweep."""
        return (self.folder.parent / PLAN).is_file()

    @property
    def metrics(self) -> dict[str, float]:
        return self.record["metrics"]

    def numbers(self) -> dict[str, Any]:
        """Returns the run as one row of a table, with metrics by name, `errors/<kind>` and `shift/<name>`."""
        git = self.record.get("git") or {}
        return {
            "seed": self.seed,
            "folder": str(self.folder),
            "revision": git.get("revision"),
            "dirty": bool(git.get("dirty")),
            # A resumed run recorded only the seconds since it was resumed.
            "seconds": None if self.config.get("ckpt_path") else self.record.get("seconds"),
            "step_seconds": self.record.get("step_seconds"),
            "peak_memory_bytes": self.record.get("peak_memory_bytes"),
            **self.metrics,
            **{f"errors/{kind}": count for kind, count in (self.record.get("errors") or {}).items()},
            **{f"shift/{name}": value for name, value in self.record.get("shift", {}).get("summary", {}).items()},
            "command": self.record.get("command") or "",
        }


@dataclass(frozen=True, eq=False)
class Benchmark:
    """The output of a benchmark such as `tools/bench_ops.py`: a table of times as text, its record and its plots."""

    path: Path
    record: dict[str, Any]
    rows: pd.DataFrame
    pictures: list[Path]


@dataclass(frozen=True)
class Problem:
    """Something found that is not in the report's numbers, and why."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass
class Collected:
    """All that was found, in the natural order of paths (run 10 after run 9)."""

    runs: list[Run] = field(default_factory=list)
    benchmarks: list[Benchmark] = field(default_factory=list)
    costs: list[Costs] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Context that turns a ValueError or OSError into a problem of `path`."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.problems.append(Problem(path, f"unreadable: {error}"))


def collect(paths: Iterable[Path]) -> Collected:
    """Reads every run and benchmark at or below `paths`.

    A folder with `config.yaml` is a run directory, and incomplete without `metrics.json`; so is a folder that has only
    `status.json` or Hydra's record. A folder with `sweep.json` is a sweep, whose runs are inside it. A JSON file beside
    a CSV file of the same name with a column `median_ms` is a benchmark; `cost.json` is what `tools/cost.py` measured.
    Hidden folders are not searched.

    Args:
        paths: folders, or single JSON files of benchmarks.
    """
    paths, found = list(paths), Collected()
    folders: dict[Path, Path] = {}
    for path in paths:
        if path.is_file():
            _read_benchmark(path, found)
        for folder in _folders(path):
            if folders.setdefault(folder.resolve(), folder) is folder:
                _read_folder(folder, found)
    places = [run.folder for run in found.runs] + [one.path for one in found.benchmarks]
    places += [each.path for each in found.costs] + [problem.path for problem in found.problems]
    for path in paths:
        if not any(place.resolve().is_relative_to(path.resolve()) for place in places):
            message = "is neither a folder nor the JSON file of a benchmark" if path.exists() else "does not exist"
            if path.is_dir():
                message = "holds no run (a folder with config.yaml) and no benchmark"
            found.problems.append(Problem(path, message))
    return found


def _folders(top: Path) -> Iterable[Path]:
    for folder, subfolders, _ in os.walk(top):
        subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=_natural)
        yield Path(folder)


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns a sort key that puts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_folder(folder: Path, found: Collected) -> None:
    has_config, has_metrics = (folder / "config.yaml").is_file(), (folder / "metrics.json").is_file()
    with found.reading(folder):
        if (folder / PLAN).is_file():
            planned = read_plan(folder)
            if missing := sum(not (folder / name).is_dir() for name in planned):
                message = f"interrupted sweep: {missing} of {len(planned)} runs were never started"
                found.problems.append(Problem(folder, message))
    with found.reading(folder):
        if has_config and has_metrics:
            found.runs.append(_read_run(folder))
        elif has_metrics:
            found.problems.append(Problem(folder, "metrics.json without config.yaml: its settings are unknown"))
        elif has_config or (folder / STATUS).is_file():
            found.problems.append(Problem(folder, _why_incomplete(folder)))
        elif (folder / ".hydra").is_dir():
            found.problems.append(Problem(folder, "incomplete: ended before training, without config.yaml"))
    for path in sorted(folder.glob("*.json")):
        _read_benchmark(path, found)


def _why_incomplete(folder: Path) -> str:
    """Says why a run has no metrics, and how many epochs were trained."""
    status = read_status(folder)
    if status is not None and status.state != "interrupted":
        return f"{status.state}: {status.error}"
    epochs = len(_read_curves(folder).reindex(columns=["train/loss"]).dropna())
    planned = (_read_config(folder).get("trainer") or {}).get("max_epochs")
    progress = f"{epochs} of {planned} epochs trained" if planned else f"{epochs} epochs trained"
    why = f" ({status.error})" if status and status.error else ""
    return f"{status.state if status else 'incomplete'}: {progress}, no metrics.json{why}"


def _read_run(folder: Path) -> Run:
    """Reads a run directory; raises ValueError if a file in it is not as it should be."""
    config, path = _read_config(folder), folder / "metrics.json"
    record = read_metrics(path)
    if not record["metrics"]:
        raise ValueError("metrics.json holds no metric")
    _check(record, _METRICS, path.name)
    if (errors := record.get("errors")) is not None:
        if lacking := sorted({"objects", "correct", *ERRORS} - errors.keys(), reverse=True):
            raise ValueError(f"metrics.json: errors lacks {', '.join(lacking)}")
        if odd := [f"{kind}={count!r}" for kind, count in errors.items() if type(count) is not int or count < 0]:
            raise ValueError(f"metrics.json: errors must be counts, got {', '.join(odd)}")
    if (shift := folder / SHIFT).is_file():
        record["shift"] = _read_shift(shift)
    matches = folder / MATCHES
    curves, finished = _read_curves(folder), path.stat().st_mtime
    return Run(folder, config, record, curves, finished, matches if matches.is_file() else None)


def _read_shift(path: Path) -> dict[str, Any]:
    """Reads the results of `tools/shift.py`: `summary`, NaN where undefined, and `settings` as text."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        summary = {str(n): float("nan") if v is None else float(v) for n, v in found["summary"].items()}
        settings = f"{found['images']} images moved {found['direction']}, {len(found['shifts'])} shifts"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is not what tools/shift.py writes: {error!r}") from error
    return {"summary": summary, "settings": settings}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.to_container(read_run_config(folder / "config.yaml"), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config.yaml: {error}") from error
    needed = {"seed": "a whole number", "data": "an object", "evaluation": "an object"}
    if not isinstance(config, dict) or (missing := needed.keys() - config.keys()):
        lacking = f": it has no {', '.join(sorted(missing))}" if isinstance(config, dict) else ""
        raise ValueError(f"config.yaml is not the config of a run{lacking}")
    settings = {str(key): value for key, value in config.items()}
    _check(settings, needed, "config.yaml", may_be_null=False)
    if "split" not in settings["evaluation"]:
        raise ValueError("config.yaml is not the config of a run: it has no evaluation.split")
    return settings


def _check(record: Mapping[str, Any], kinds: Mapping[str, str], file: str, may_be_null: bool = True) -> None:
    """Raises ValueError if an entry has the wrong type."""
    for key, kind in kinds.items():
        section, _, name = key.rpartition(".")
        value = ((record.get(section) or {}) if section else record).get(name)
        if type(value) not in _TYPES[kind] and not (may_be_null and value is None):
            raise ValueError(f"{file}: {name} must be {kind}, got {value!r}")


def _read_curves(folder: Path) -> pd.DataFrame:
    """Reads Lightning's CSV files, one for each start or resumption of the run, as one row per epoch."""
    before = sorted(folder.glob("csv_before_*/metrics.csv"), key=lambda path: _natural(path.parent.name))
    tables = [pd.DataFrame({"epoch": []})]
    for path in (path for path in [*before, folder / "csv" / "metrics.csv"] if path.is_file()):
        try:
            table = pd.read_csv(path).rename(columns={"train/loss_epoch": "train/loss"})
            curves = [name for name in table if name == "train/loss" or name.startswith("val/")]
            tables.append(table[["epoch", *curves]].astype(float).astype({"epoch": int}))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path.relative_to(folder)}: {error}") from error
    rows = pd.concat(tables)
    return rows.assign(epoch=rows["epoch"].astype(int) + 1).groupby("epoch").last()


def _read_benchmark(path: Path, found: Collected) -> None:
    """Adds a benchmark, costs, or a problem with them; does nothing if the file is something else."""
    table = path.with_suffix(".csv")
    if path.suffix != ".json" or not table.is_file():
        return
    if path.name == COSTS:
        with found.reading(path):
            found.costs.append(read_costs(path))
        return
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        columns, *lines = list(csv.reader(file)) or [[]]
    if "median_ms" not in columns:
        return
    with found.reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "command" not in record:
            raise ValueError("it is not the record of a benchmark: it has no 'command'")
        _check(record, _PROVENANCE, path.name)
        if broken := [number for number, line in enumerate(lines, 2) if len(line) != len(columns)]:
            raise ValueError(f"line {broken[0]} of {table.name} does not have the {len(columns)} columns of the header")
        rows = pd.DataFrame(lines, columns=columns, dtype=str)
        rows = rows if "status" in columns else rows.assign(status="timed")
        found.benchmarks.append(Benchmark(path, record, rows, sorted(path.parent.glob(f"{path.stem}*.png"))))
