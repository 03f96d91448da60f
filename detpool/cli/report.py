"""Makes a report of any set of runs: one HTML page that opens offline, Markdown, CSV, LaTeX and the plots.

    python tools/report.py logs/demo
    python tools/report.py logs/demo/multiruns/2026-01-31_12-00-00-000000 --baseline pooler=roi_pool --metric AP75
    python tools/report.py logs/pooling_nuclei --by backbone.output_stride # tables of their own for each stride
    python tools/report.py logs results/ops_cpu --output report           # with the operators' benchmark

Runs may lie anywhere below the folders. Runs that differ only in their seed are averaged; configurations are compared
with the baseline seed by seed. Runs get separate tables if their metrics are not comparable: other data, another split
or another image size at evaluation (unless a sweep varies it). Incomplete and unreadable runs are listed. The exit
status is 2 if nothing can be reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import detpool
from detpool.errors import exit_with_message, writing
from detpool.files import write_bytes_atomically, write_text_atomically
from detpool.report.build import Report, build_report
from detpool.report.collect import collect
from detpool.report.page import render
from detpool.report.plots import Picture
from detpool.report.tables import revision
from detpool.run_record import git_state, program, shell_command

PICTURES = "plots"
"""Folder of the pictures, inside the report's folder."""


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    with exit_with_message():
        report = build_report(collect(options.logs), options.metric, options.baseline, options.by, options.show)
        command = shell_command([program("tools/report.py"), *(sys.argv[1:] if argv is None else argv)])
        made_at = revision(
            {"git": git_state(Path(detpool.__file__).parents[1]), "versions": {"detpool": detpool.__version__}}
        )
        with writing(options.output):
            write(report, options.output, f"Made by `{command}` at revision {made_at}.")
    for note in [
        *report.problems,
        *report.notes,
        *(f"{part.title}: {note}" for part in report.parts for note in part.notes),
    ]:
        print(f"note: {note}", file=sys.stderr)
    print(f"{options.output / 'report.html'}: {report.title}; beside it Markdown, CSV and LaTeX")


def write(report: Report, folder: Path, footer: str) -> None:
    """Writes the files of a report to a folder; `footer` is the last line of each document."""
    for name in ("report.html", "report.md", "report.tex"):
        write_text_atomically(folder / name, render(report, name, footer, PICTURES))
    for name in ("runs", "summary", "across"):
        if name in report.numbers:
            write_text_atomically(folder / f"{name}.csv", report.numbers[name].to_csv())
        else:  # a file left by an earlier report would seem to belong to this one
            (folder / f"{name}.csv").unlink(missing_ok=True)
    for part in report.parts:
        for picture in (block for block in part.blocks if isinstance(block, Picture)):
            for suffix, content in picture.files.items():
                write_bytes_atomically(folder / PICTURES / f"{part.name}_{picture.name}.{suffix}", content)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path, help="folders of runs and benchmarks, or a benchmark's JSON file")
    parser.add_argument("--output", type=Path, default=Path("logs/report"), help="folder; default: logs/report")
    parser.add_argument("--metric", default="AP", help="that configurations are compared by; default: AP")
    parser.add_argument(
        "--baseline",
        help="configuration to compare with: its label, a variant's name, or pooler=roi_pool; default: the first",
    )
    parser.add_argument(
        "--show", action="append", default=[], help="configuration that plots show, besides the baseline and the best"
    )
    parser.add_argument(
        "--by", help="dotted key of a setting: tables for each of its values, and what changes between them"
    )
    return parser.parse_args(argv)
