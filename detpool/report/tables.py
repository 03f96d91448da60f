"""Tables, and what becomes of them in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detpool.report.statistics import Difference, Summary


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        header: names of the columns.
        rows: cells, as many as `header` in each.
        note: how to read it; may be empty.
        words: how many leading columns hold words; the others hold numbers, and align at the right.
        listing: whether it is there to look things up in, and of no use in a paper.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1
    listing: bool = False


def percent(summary: Summary, runs: int) -> str:
    """Mean and standard deviation in percent; the number of values too, if it is not that of the runs."""
    return scaled(summary, runs, 100, 1)


def scaled(summary: Summary, runs: int, factor: float, digits: int) -> str:
    """Mean and standard deviation times `factor`."""
    if not summary.n:
        return "-"
    text = f"{factor * summary.mean:.{digits}f}"
    if not math.isnan(summary.std):
        text += f" ± {factor * summary.std:.{digits}f}"
    return text if summary.n == runs else f"{text} (n = {summary.n})"


def percent_points(difference: Difference) -> str:
    """Mean difference in points of percent and its interval."""
    if not difference.n:
        return "-"
    text = _signed(difference.mean)
    if not math.isnan(difference.low):
        text += f" [{_signed(difference.low)}, {_signed(difference.high)}]"
    return text


def _signed(value: float) -> str:
    # Not -0.00.
    return f"{round(100 * value, 2) + 0.0:+.2f}"


def revision(digits: str | None, dirty: bool) -> str:
    """A git revision as text."""
    return (digits or "unknown") + (" with changes" if dirty else "")


def machine(hardware: Mapping[str, Any]) -> str:
    """Processor, cores and GPUs of `detpool.run_record.hardware` as text."""
    gpus = ", ".join(map(str, hardware.get("gpus") or []))
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores" + (f", {gpus}" if gpus else "")


def to_markdown(table: Table) -> str:
    """A pipe table without its title."""
    lines = [
        _markdown_row(table.header),
        "|" + "---|" * table.words + "---:|" * (len(table.header) - table.words),
        *(_markdown_row(row) for row in table.rows),
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(markdown_text(cell) for cell in cells)} |"


def markdown_text(text: str) -> str:
    """Text whose characters mean nothing to Markdown, on one line."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
}


def to_latex(table: Table) -> str:
    """A floating table with its title as caption; needs the package booktabs."""
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(table.title)}}}",
        rf"  \begin{{tabular}}{{{'l' * table.words}{'r' * (len(table.header) - table.words)}}}",
        r"    \toprule",
        rf"    {_latex_row(table.header)}",
        r"    \midrule",
        *(f"    {_latex_row(row)}" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    # A row that begins with [ would be taken for the optional argument of the line break before it.
    text = " & ".join(latex_text(cell) for cell in cells)
    return f"{'{}' if text.startswith('[') else ''}{text} \\\\"


def latex_text(text: str) -> str:
    """Text whose characters mean nothing to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """A line a record and a column for every key of any; None and NaN are empty cells."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        missing = {key for key, value in record.items() if isinstance(value, float) and math.isnan(value)}
        writer.writerow({key: None if key in missing else value for key, value in record.items()})
    return text.getvalue()
