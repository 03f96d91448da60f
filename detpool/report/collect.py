"""Finds runs and benchmarks below folders and reads them; what cannot be used is reported, never skipped."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from detpool.evaluation.errors import ERRORS
from detpool.run_config import read_run_config
from detpool.run_record import read_metrics
from detpool.study.layout import PLAN, STATUS, read_plan, read_status

Curve = dict[int, float]
"""A value for each epoch, counted from 1."""


@dataclass(frozen=True)
class Run:
    """A finished run, as its directory tells it.

    Attributes:
        folder: the run directory.
        config: its whole config.
        seed: the config's seed.
        metrics: name to number in 0 .. 1, NaN where undefined.
        errors: counts of `detpool.evaluation.errors.error_decomposition`, None if not recorded.
        step_seconds: median seconds of a training step, None if not recorded.
        peak_memory_bytes: most memory of a training step, None if not recorded.
        seconds: wall-clock time of the run, None if not recorded, or recorded of the last part of a resumed run only.
        command: its command line.
        revision: git revision of detpool, None if unknown.
        dirty: whether files differed from the revision.
        versions: packages and their versions.
        hardware: platform, processor, cores and GPUs.
        notes: sentences on what to beware of in the metrics.
        curves: `train/loss` and `val/<metric>` by epoch; empty without Lightning's CSV file.
        finished: when metrics.json was written, in seconds since 1970.
    """

    folder: Path
    config: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    errors: dict[str, int] | None
    step_seconds: float | None
    peak_memory_bytes: float | None
    seconds: float | None
    command: str
    revision: str | None
    dirty: bool
    versions: dict[str, str | None]
    hardware: dict[str, Any]
    notes: list[str]
    curves: dict[str, Curve]
    finished: float

    @property
    def split(self) -> str:
        return str(self.config["evaluation"]["split"])


@dataclass(frozen=True)
class Benchmark:
    """What `tools/bench_ops.py` has written: a table of times, its pictures and how they came about."""

    path: Path
    record: dict[str, Any]
    columns: list[str]
    rows: list[dict[str, str]]
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
    problems: list[Problem] = field(default_factory=list)


def collect(paths: Iterable[Path]) -> Collected:
    """Reads every run and benchmark at or below `paths`.

    A folder with `config.yaml` is a run directory, and incomplete without `metrics.json`; so is a folder in which only
    `status.json` or Hydra's record is. A folder with `sweep.json` is a sweep, whose runs lie in it. A JSON file beside
    a CSV file of the same name with a column `median_ms` is a benchmark. Hidden folders are not searched.

    Args:
        paths: folders, or single benchmark files.
    """
    found = Collected()
    seen: set[Path] = set()
    for path in paths:
        if path.is_file():
            before = len(found.benchmarks) + len(found.problems)
            _read_benchmark(path, found)
            if len(found.benchmarks) + len(found.problems) == before:
                found.problems.append(Problem(path, "is neither a folder nor the JSON file of a benchmark"))
        elif not path.is_dir():
            found.problems.append(Problem(path, "does not exist"))
        else:
            before = len(found.runs) + len(found.benchmarks) + len(found.problems)
            for folder in _folders(path):
                if folder.resolve() not in seen:
                    seen.add(folder.resolve())
                    _read_folder(folder, found)
            if len(found.runs) + len(found.benchmarks) + len(found.problems) == before:
                found.problems.append(Problem(path, "holds no run (a folder with config.yaml) and no benchmark"))
    return found


def _folders(top: Path) -> Iterable[Path]:
    for folder, subfolders, _ in os.walk(top):
        subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=_natural)
        yield Path(folder)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_folder(folder: Path, found: Collected) -> None:
    config, metrics = folder / "config.yaml", folder / "metrics.json"
    if (folder / PLAN).is_file():
        _check_sweep(folder, found)
    if config.is_file():
        try:
            found.runs.append(_read_run(folder))
        except FileNotFoundError:
            found.problems.append(Problem(folder, _incomplete(folder)))
        except (ValueError, OSError) as error:
            found.problems.append(Problem(folder, f"unreadable: {error}"))
    elif metrics.is_file():
        found.problems.append(Problem(folder, "metrics.json without config.yaml: its settings are unknown"))
    elif (folder / STATUS).is_file():
        found.problems.append(Problem(folder, _incomplete(folder)))
    elif (folder / ".hydra").is_dir():
        found.problems.append(Problem(folder, "incomplete: ended before training, without config.yaml"))
    for path in sorted(folder.glob("*.json")):
        _read_benchmark(path, found)


def _check_sweep(folder: Path, found: Collected) -> None:
    """Reports runs that a sweep planned and never started."""
    try:
        planned = read_plan(folder)
    except (ValueError, OSError) as error:
        found.problems.append(Problem(folder, f"unreadable: {error}"))
        return
    if missing := sum(not (folder / name).is_dir() for name in planned):
        found.problems.append(
            Problem(folder, f"interrupted sweep: {missing} of {len(planned)} runs were never started")
        )


def _incomplete(folder: Path) -> str:
    """Why a run has no metrics, and how far it came."""
    try:
        status = read_status(folder)
    except (ValueError, OSError) as error:
        return f"unreadable: {error}"
    if status is None or status.state == "interrupted":
        why = f" ({status.error})" if status and status.error else ""
        return f"{status.state if status else 'incomplete'}: {_progress(folder)}, no metrics.json{why}"
    return f"{status.state}: {status.error}"


def _read_run(folder: Path) -> Run:
    """Raises FileNotFoundError without metrics.json, ValueError if anything in the folder is not what it should be."""
    config = _read_config(folder / "config.yaml")
    record = read_metrics(folder / "metrics.json")
    if not record["metrics"]:
        raise ValueError("metrics.json holds no metric")
    git = _entry(record, "git", dict) or {}
    errors = _entry(record, "errors", dict)
    if errors is not None and (lacking := {"objects", "correct", *ERRORS} - errors.keys()):
        raise ValueError(f"metrics.json: errors lacks {', '.join(sorted(lacking, reverse=True))}")
    if odd := [f"{kind}={count!r}" for kind, count in (errors or {}).items() if type(count) is not int or count < 0]:
        raise ValueError(f"metrics.json: errors must be counts, got {', '.join(odd)}")
    return Run(
        folder=folder,
        config=config,
        seed=config["seed"],
        metrics=record["metrics"],
        errors=errors,
        step_seconds=_entry(record, "step_seconds", (int, float)),
        peak_memory_bytes=_entry(record, "peak_memory_bytes", (int, float)),
        # A resumed run recorded those since then.
        seconds=None if config.get("ckpt_path") else _entry(record, "seconds", (int, float)),
        command=_entry(record, "command", str) or "",
        revision=_entry(git, "revision", str),
        dirty=bool(git.get("dirty")),
        versions=_entry(record, "versions", dict) or {},
        hardware=_hardware(record),
        notes=[str(note) for note in _entry(record, "notes", list) or []],
        curves=_read_curves(folder),
        finished=(folder / "metrics.json").stat().st_mtime,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.to_container(read_run_config(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config.yaml: {error}") from error
    if not isinstance(config, dict):
        raise ValueError("config.yaml is not the config of a run")
    missing = [key for key in ("seed", "data", "evaluation") if key not in config]
    if missing:
        raise ValueError(f"config.yaml is not the config of a run: no {', '.join(missing)}")
    if not isinstance(config["data"], dict) or not isinstance(config["evaluation"], dict):
        raise ValueError("config.yaml: data and evaluation must be groups of settings")
    if "split" not in config["evaluation"]:
        raise ValueError("config.yaml is not the config of a run: no evaluation.split")
    if not isinstance(config["seed"], int):
        raise ValueError(f"config.yaml: seed must be a whole number, got {config['seed']!r}")
    return {str(key): value for key, value in config.items()}


def _entry(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], file: str = "metrics.json") -> Any:
    """An entry of a record that may be null or, in an older file, absent."""
    value = record.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"{file}: {name} has the value {value!r}")
    return value


def _hardware(record: Mapping[str, Any], file: str = "metrics.json") -> dict[str, Any]:
    hardware: dict[str, Any] = _entry(record, "hardware", dict, file) or {}
    _entry(hardware, "gpus", list, file)
    return hardware


def _read_curves(folder: Path) -> dict[str, Curve]:
    """Lightning's CSV files, one for each time the run was begun or resumed: a row a logged step, most cells empty."""
    before = sorted(folder.glob("csv_before_*/metrics.csv"), key=lambda path: _natural(path.parent.name))
    curves: dict[str, Curve] = {}
    for path in [*before, folder / "csv" / "metrics.csv"]:
        if not path.is_file():
            continue
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    for column, text in row.items():
                        name = "train/loss" if column == "train/loss_epoch" else column
                        if text and (name == "train/loss" or (name and name.startswith("val/"))):
                            curves.setdefault(name, {})[int(row["epoch"]) + 1] = float(text)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(f"{path.relative_to(folder)}: {error}") from error
    return curves


def _progress(folder: Path) -> str:
    """How far a run without metrics came."""
    try:
        epochs = max(_read_curves(folder).get("train/loss", {}), default=0)
        planned = _read_config(folder / "config.yaml").get("trainer", {}).get("max_epochs")
    except ValueError as error:
        return str(error)
    return f"{epochs} of {planned} epochs trained" if planned else f"{epochs} epochs trained"


def _read_benchmark(path: Path, found: Collected) -> None:
    """Adds a benchmark, or a problem with one; neither, if the file is none."""
    table = path.with_suffix(".csv")
    if path.suffix != ".json" or not table.is_file():
        return
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        rows = list(reader)
    if "median_ms" not in columns:
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found.problems.append(Problem(path, f"is not valid JSON: {error}"))
        return
    if not isinstance(record, dict) or "command" not in record:
        found.problems.append(Problem(path, "is not the record of a benchmark: it has no 'command'"))
        return
    try:
        _entry(_entry(record, "git", dict, path.name) or {}, "revision", str, path.name)
        _entry(record, "versions", dict, path.name)
        _hardware(record, path.name)
    except ValueError as error:
        found.problems.append(Problem(path, f"unreadable: {error}"))
        return
    broken = [number for number, row in enumerate(rows, 2) if None in row or None in row.values()]
    if broken:
        found.problems.append(Problem(table, f"line {broken[0]} has not the {len(columns)} columns of the header"))
        return
    pictures = sorted(path.parent.glob(f"{path.stem}*.png"))
    found.benchmarks.append(Benchmark(path, record, columns, rows, pictures))
