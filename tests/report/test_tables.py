"""Numbers as text, and text that means something to Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math

from detpool.report.statistics import Difference, Summary
from detpool.report.tables import Table, percent, percent_points, scaled, to_csv, to_latex, to_markdown

TABLE = Table("R&D_1", ["configuration", "AP"], [["reduction=Lp(p=3), a|b", "50.0 ± 1.0"], ["[x]_y", "-"]])


def test_numbers():
    assert percent(Summary(3, 0.5123, 0.0123), 3) == "51.2 ± 1.2"
    assert percent(Summary(1, 0.5123, math.nan), 1) == "51.2"
    assert percent(Summary(2, 0.5, 0.1), 3) == "50.0 ± 10.0 (n = 2)"
    assert percent(Summary(0, math.nan, math.nan), 3) == "-"
    assert scaled(Summary(2, 3 << 20, 0.0), 2, 2**-20, 0) == "3 ± 0"
    assert percent_points(Difference(3, 0.0123, -0.001, 0.03)) == "+1.23 [-0.10, +3.00]"
    assert percent_points(Difference(1, -0.0123, math.nan, math.nan)) == "-1.23"
    assert percent_points(Difference(2, -1e-9, -1e-9, 0.0)) == "+0.00 [+0.00, +0.00]"
    assert percent_points(Difference(0, math.nan, math.nan, math.nan)) == "-"


def test_markdown():
    assert to_markdown(TABLE).splitlines() == [
        "| configuration | AP |",
        "|---|---:|",
        r"| reduction=Lp(p=3), a\|b | 50.0 ± 1.0 |",
        r"| \[x\]\_y | - |",
    ]


def test_latex():
    lines = [line.strip() for line in to_latex(TABLE).splitlines()]
    assert r"\caption{R\&D\_1}" in lines
    assert r"\begin{tabular}{lr}" in lines
    assert r"reduction=Lp(p=3), a|b & 50.0 $\pm$ 1.0 \\" in lines
    # Else it would be the optional argument of the line break before it.
    assert r"{}[x]\_y & - \\" in lines


def test_csv_has_every_column_of_any_record():
    text = to_csv([{"run": 'a "b", c', "AP": 0.1 + 0.2}, {"run": "d", "AP": math.nan, "voc_AP": None, "AR": 1.0}])
    one, two = csv.DictReader(io.StringIO(text))
    assert one == {"run": 'a "b", c', "AP": repr(0.1 + 0.2), "voc_AP": "", "AR": ""}
    assert two == {"run": "d", "AP": "", "voc_AP": "", "AR": "1.0"}
