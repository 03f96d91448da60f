"""LaTeX tables: what they say, that they fit, and that LaTeX takes them."""

from __future__ import annotations

import re
import shutil
import subprocess

import pandas as pd
import pytest

from detpool.report.build import Part, Report
from detpool.report.latex import fit, latex
from detpool.report.page import render
from detpool.report.plots import Picture
from detpool.report.tables import Table

NAMES = ["AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75", "APs", "APm", "APl", "mask_APs"]
LONG = "head_pool=TokenHead, pool=LearnedMeanTokenPool, head_pool.class_token=unset, head_pool.causal=unset"
ODD = 'a_50 % <b> & "c" {d} #1 ~ ^ \\ | $x'


def metrics(*labels, names=NAMES):
    rows = [[label, "3", *["-51.0 ± 1.0"] * len(names)] for label in labels]
    return Table("Metrics", pd.DataFrame(rows, columns=["configuration", "seeds", *names]), "a note")


def source(*tables):
    part = Part("1", "shapes, test split", [], list(tables), {"model": "mask_rcnn"})
    return render(Report("a report", [], [part]), "report.tex")


DIFFERENCES = {f"Δ {name}": ["+15.60 [+13.80, -17.20]"] for name in ("AP", "mask_AP", "AP75", "AP@0.90", "AP/cat")}
TABLES = [
    metrics("pooler=roi_pool", "-"),
    metrics(LONG, ODD, "[x]"),
    Table("Ranking & more", pd.DataFrame({"configuration": ["a"], "rank": ["1"], "AP": ["51.0 ± 1.0"]})),
    Table("AP by stride", pd.DataFrame({"head": [LONG], "odd": [ODD], "stride=8": ["51.0"]}), words=2),
    Table("Differences", pd.DataFrame({"configuration": ["a"], "pairs": ["3"]} | DIFFERENCES)),
]


def test_signs_of_numbers_are_minus_signs_and_those_of_words_are_not():
    assert latex("-1.23 [-2.00, +0.10]") == "$-$1.23 [$-$2.00, +0.10]"
    assert latex("lr=1e-05, k-2, x=-3") == "lr=1e-05, k-2, x=$-$3"
    assert (latex("-"), latex("±×Δ")) == ("--", r"$\pm$$\times$$\Delta$")
    assert latex("51.0 ± 1.0, mean ± deviation") == r"51.0$\pm$1.0, mean $\pm$ deviation"
    assert latex("a_b & 5 % {#1} \\ ~ ^ $") == (
        r"a\_b \& 5 \% \{\#1\} \textbackslash{} \textasciitilde{} \textasciicircum{} \$"
    )


def test_columns_are_left_out_from_the_last_on_until_the_others_fit():
    few, many = fit(metrics("pr_roi_pool", names=NAMES[:2])), fit(metrics("pr_roi_pool"))
    assert (few.environment, few.columns, few.left_out) == ("table", "lrrr", [])
    assert few.rows[0] == ["configuration", "seeds", "AP", r"AP$_{\mathrm{50}}$"]
    # "configuration" takes 50.4 points, "seeds" 22, each other column 38.6, and gaps 6: five make 301, six 346 points.
    assert (many.environment, many.columns, many.left_out) == ("table*", "lrrrrrr", NAMES[5:])
    assert many.rows[0][5] == r"AP$^{\mathrm{m}}$"
    assert many.caption == r"Metrics. a note AP$^{\mathrm{m}}$: AP of masks."


def test_long_words_are_broken_and_one_column_of_numbers_is_always_there():
    shown = fit(metrics(LONG))
    assert shown.columns == r">{\raggedright\arraybackslash}p{130pt}rrrrr"
    assert shown.rows[1][0].startswith(r"head\_\allowbreak{}pool=\allowbreak{}TokenHead, pool=")
    wide = Table("Differences", pd.DataFrame([["a", "1" * 100]], columns=["configuration", "x"]))
    assert fit(wide).left_out == []


def test_tables_are_whole_and_every_row_has_as_many_cells_as_columns():
    lookup = Table("Runs", TABLES[0].cells, listing=True)
    text = source(*TABLES, lookup, Picture("plot", "a plot", {"svg": b""}))
    assert text.startswith("% \\usepackage{booktabs,array}")
    assert "%   model: mask_rcnn\n" in text
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert labels[:3] == ["tab:1-metrics", "tab:1-metrics", "tab:1-ranking-more"]
    found = re.findall(
        r"\\begin\{(table\*?)\}\[t\]\n(.*?)\\begin\{tabular\}\{@\{\}(.*?)@\{\}\}\n(.*?)\\end\{tabular\}\n\\end\{\1\}",
        re.sub("^ *", "", text, flags=re.MULTILINE),
        re.DOTALL,
    )
    assert len(found) == len(TABLES) == text.count(r"\begin{table") == text.count(r"\end{table")
    for _, _, columns, body in found:
        number = len(re.findall(r"[lr]|p\{", columns.replace(r">{\raggedright\arraybackslash}", "")))
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {number}
        assert body.splitlines()[0] == r"\toprule"
    # Else it would be the optional argument of the line break before it.
    assert "\n    {}[x] & 3 & " in text
    assert "% left out: Δ AP75, Δ AP@0.90, Δ AP/cat\n" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
@pytest.mark.parametrize("options", ["", "twocolumn"])
def test_latex_sets_them_within_the_columns(tmp_path, options):
    packages = r"\usepackage{booktabs,array}\usepackage[T1]{fontenc}"
    # CVPR's columns; without options article's page, the narrowest.
    page = r"\setlength{\textwidth}{496pt}\setlength{\columnsep}{22pt}" if options else ""
    paper = rf"\documentclass[{options}]{{article}}{packages}{page}\begin{{document}}{source(*TABLES)}\end{{document}}"
    (tmp_path / "paper.tex").write_text(paper, encoding="utf-8")
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert (tmp_path / "paper.pdf").is_file()
    assert "Overfull" not in log
