"""tools/report.py from run directories to files, what it says of bad ones, and its page in a browser."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import report
from PIL import Image

from detpool.report import plots
from detpool.report.build import Part, Report
from detpool.report.page import render
from detpool.report.plots import Picture
from detpool.report.tables import Table

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Rows of every table, sources of every picture, and whatever could make a browser fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.pictures: list[str] = []
        self.headings: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._into = self.tables[-1][-1]
        if tag in ("h1", "h2", "h3", "li"):
            self._into = self.headings

    def handle_data(self, data):
        if self._into is not None:
            self._into.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th", "h1", "h2", "h3", "li"):
            self._into = None


def table_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run_report(tmp_path, capsys):
    """`run_report(folder, ...)`: the parsed page, and what was said on standard error."""

    def run(*arguments):
        report.main([*map(str, arguments), "--output", str(tmp_path / "report")])
        return Page((tmp_path / "report" / "report.html").read_text()), capsys.readouterr().err

    return run


@pytest.fixture
def without_plots(monkeypatch):
    """Spares the seconds of drawing where only words and numbers are looked at."""
    monkeypatch.setattr(plots, "_picture", lambda _, name, title, note="": Picture(name, title, {"svg": b"<svg/>"}))


@pytest.fixture
def refused(tmp_path, capsys):
    """`refused(folder, ...)`: the message of a report that cannot be made."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            report.main([*map(str, arguments), "--output", str(tmp_path / "report")])
        assert end.value.code == 2
        assert not (tmp_path / "report").exists()
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        return error

    return run


@pytest.mark.usefixtures("without_plots")
def test_boxes_and_masks_stand_beside_each_other(make_run, run_report, tmp_path):
    for seed in range(2):
        for name, ap in (("roi_pool", 0.4), ("roi_align", 0.5)):
            path = make_run(f"logs/{name}{seed}", ap, seed=seed, pooler=name) / "metrics.json"
            record = json.loads(path.read_text())
            record["metrics"] |= {f"mask_{key}": value and value - 0.1 for key, value in record["metrics"].items()}
            path.write_text(json.dumps(record))
    page, _ = run_report(tmp_path / "logs", "--metric", "mask_AP75", "--baseline", "pooler=roi_pool")
    header, align, _ = page.tables[0]
    assert header[2:] == ["mask_AP75", "mask_AP", "mask_AP50", "mask_APs", "mask_APm", "AP"]
    assert (align[3], align[-1]) == ("40.0 ± 0.0", "50.0 ± 0.0")
    assert page.tables[1][0][-1] == "Δ AP"
    assert page.tables[1][1][-1].startswith("+10.00 [")
    page, _ = run_report(tmp_path / "logs")
    assert page.tables[0][0][-1] == page.tables[1][0][-1].removeprefix("Δ ") == "mask_AP"
    assert "Kinds of errors of boxes" in page.headings  # whatever the metric


def test_tables_and_pictures_of_a_sweep(sweep, run_report, tmp_path):
    page, said = run_report(sweep)
    # 50, 52, 51 and 51, 54, 57.
    assert page.tables[0] == [
        ["configuration", "seeds", "AP", "AP50", "AP75", "APs", "APm"],
        ["pooler=roi_pool", "3", "51.0 ± 1.0", "76.5 ± 1.5", "63.4 ± 1.2", "40.8 ± 0.8", "56.1 ± 1.1"],
        ["pooler=pr_roi_pool", "3", "54.0 ± 3.0", "81.0 ± 4.5", "67.1 ± 3.7", "43.2 ± 2.4", "59.4 ± 3.3"],
    ]
    # All resamples of 1, 2 and 6: 1/27 of them has the mean 1, and 1/27 the mean 6.
    assert page.tables[1][1][:3] == ["pooler=pr_roi_pool", "3", "+3.00 [+1.00, +6.00]"]
    assert "nominally 95 %, are too narrow: they hold 75 % of the time with 3 seeds" in said
    assert page.tables[3][1][:4] == ["pooler=roi_pool", "60.0 ± 0.0", "5.0 ± 0.0", "10.0 ± 0.0"]
    assert page.tables[4][1] == ["pooler=roi_pool", "250.0 ± 0.0", "1.00", "3 ± 0", "2.0 ± 0.0"]
    runs = page.tables[5]
    assert len(runs) == 7
    assert runs[1] == ["pooler=roi_pool", "0", str(sweep / "0"), "a" * 40, "train.py pooler=roi_pool seed=0"]
    assert len(page.pictures) == 6
    assert page.headings[0] == "6 runs"

    folder = tmp_path / "report"
    assert len(list((folder / "plots").glob("*.svg"))) == len(list((folder / "plots").glob("*.pdf"))) == 6
    text = (folder / "report.md").read_text()
    assert "| pooler=roi\\_pool | 3 | 51.0 ± 1.0 |" in text
    assert all((folder / line.split("](")[1].rstrip(")")).is_file() for line in text.splitlines() if line[:2] == "![")
    assert r"pooler=pr\_roi\_pool & 3 & +3.00 [+1.00, +6.00]" in (folder / "report.tex").read_text()
    assert [(row["configuration"], row["seed"], row["AP"]) for row in table_of(folder / "runs.csv")][:2] == [
        ("pooler=roi_pool", "0", "0.5"),
        ("pooler=roi_pool", "1", "0.52"),
    ]
    rows = table_of(folder / "summary.csv")
    (row,) = [row for row in rows if row["metric"] == "AP" and row["baseline"] != row["configuration"]]
    numbers = {name: float(row[name]) for name in ("mean", "std", "difference", "low", "high")}
    assert numbers == pytest.approx({"mean": 0.54, "std": 0.03, "difference": 0.03, "low": 0.01, "high": 0.06})


def test_page_needs_nothing_else(sweep, run_report):
    page, _ = run_report(sweep, ROOT / "results" / "ops_cpu")
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"}
    assert page.addresses == page.pictures
    kinds = set()
    for source in page.pictures:
        kind, _, content = source.partition(";base64,")
        kinds.add(kind)
        if kind == "data:image/svg+xml":
            root = ElementTree.fromstring(base64.b64decode(content, validate=True))
            links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
            assert all(link.startswith(("#", "data:")) for link in links)
    assert kinds == {"data:image/svg+xml", "data:image/png"}


def test_same_runs_same_page(sweep, run_report, tmp_path):
    def content():
        run_report(sweep)
        return {path.name: path.read_bytes() for path in (tmp_path / "report").rglob("*") if path.is_file()}

    first = content()
    assert content() == first


@pytest.mark.usefixtures("without_plots")
def test_baseline_and_metric(sweep, run_report, refused):
    with_baseline, _ = run_report(sweep, "--baseline", "pooler=pr_roi_pool", "--metric", "AP75")
    assert with_baseline.tables[0][0][:4] == ["configuration", "seeds", "AP75", "AP"]
    assert with_baseline.tables[1][0][2] == "Δ AP75"
    assert with_baseline.tables[1][1][0] == "pooler=roi_pool"
    assert with_baseline.tables[1][1][2].startswith("-3.")
    shutil.rmtree(sweep.parent / "report")
    assert "did you mean 'pooler=roi_pool'" in refused(sweep, "--baseline", "pooler=roi_pol")
    assert "did you mean 'AP75'" in refused(sweep, "--metric", "mask_AP75")


@pytest.mark.usefixtures("without_plots")
def test_interrupted_sweep(sweep, make_run, run_report):
    make_run("logs/6", seed=3, pooler="roi_pool", finished=False)
    (sweep / "5" / "metrics.json").unlink()
    page, said = run_report(sweep)
    for note in (
        f"{sweep / '5'}: incomplete: 3 of 3 epochs trained, no metrics.json",
        f"{sweep / '6'}: incomplete: 3 of 3 epochs trained, no metrics.json",
        "pooler=pr_roi_pool has no finished run of seed 2, which others have",
    ):
        assert note in said
        assert any(note in item for item in page.headings)
    assert [row[1] for row in page.tables[0][1:]] == ["3", "2"]
    # Of the seeds that both have: 1 and 2.
    assert page.tables[1][1][1:3] == ["2", "+1.50 [+1.00, +2.00]"]


@pytest.mark.usefixtures("without_plots")
def test_values_of_a_setting_get_parts_of_their_own_that_are_compared(make_run, run_report, refused, tmp_path):
    gains = {0.02: (0.01, 0.03), 0.2: (0.05, 0.04), 0.4: (0.0, 0.0)}
    for number, (rate, by_seed) in enumerate(gains.items()):
        for seed, gain in enumerate(by_seed):
            names = {"roi_pool": 0.4, "roi_align": 0.4 + gain} if rate < 0.4 else {"roi_warp": 0.5}
            for name, ap in names.items():
                make_run(f"logs/{number}/{name}{seed}", ap, seed=seed, pooler=name, **{"optim.optimizer.lr": rate})
    arguments = [tmp_path / "logs", "--baseline", "pooler=roi_pool"]
    assert "fits 2 configurations" in refused(*arguments)
    assert "did you mean 'optim.optimizer.lr'" in refused(*arguments, "--by", "optim.optimiser.lr")
    page, said = run_report(*arguments, "--by", "optim.optimizer.lr")
    titles = [heading for heading in page.headings if heading.startswith("shapes") and "compared" not in heading]
    assert titles == [f"shapes, test split (optim.optimizer.lr={rate})" for rate in gains]
    differences = [table[1][:3] for table in page.tables if table[0][1] == "pairs"]
    assert [row[:2] for row in differences[:2]] == [["pooler=roi_align", "2"]] * 2
    assert [row[2].split()[0] for row in differences[:2]] == ["+2.00", "+4.50"]
    # 5 - 1 and 4 - 3: by how much more the configuration is above the baseline.
    assert differences[2] == ["pooler=roi_align, optim.optimizer.lr=0.2", "2", "+2.50 [+1.00, +4.00]"]
    (row,) = [row for row in table_of(tmp_path / "report" / "across.csv") if row["metric"] == "AP"]
    assert [row["from"], row["to"]] == titles[:2]
    assert [float(row[name]) for name in ("difference", "low", "high")] == pytest.approx([0.025, 0.01, 0.04])
    assert f"{titles[2]} is not compared with {titles[0]}" in said
    assert "different data sets" not in said


@pytest.mark.usefixtures("without_plots")
def test_notes_on_intervals_name_whom_they_concern(sweep, make_run, run_report, tmp_path):
    make_run("logs/6", pooler="roi_warp")
    _, said = run_report(sweep)
    assert "Not all configurations share two seeds with the baseline (not pooler=roi_warp)" in said
    assert "75 % of the time with 3 seeds" in said
    make_run("more/0", pooler="roi_pool")
    make_run("more/1")
    _, said = run_report(tmp_path / "more")
    assert "No configuration shares two seeds with the baseline: without, there are no intervals" in said
    assert "too narrow" not in said


@pytest.mark.usefixtures("without_plots")
def test_two_data_sets_are_never_mixed(make_run, run_report, tmp_path):
    make_run("logs/0", 0.4)
    make_run("logs/1", 0.6, seed=1, **{"data.size": 64})
    page, said = run_report(tmp_path / "logs")
    assert "evaluated on 2 different data sets or splits" in said
    assert [h for h in page.headings if h.startswith("shapes")] == [
        "shapes, test split (size=128)",
        "shapes, test split (size=64)",
    ]
    summaries = [table[1] for table in page.tables if table[0][:2] == ["configuration", "seeds"]]
    assert [row[1:3] for row in summaries] == [["1", "40.0"], ["1", "60.0"]]


@pytest.mark.usefixtures("without_plots")
def test_what_runs_say_of_their_metrics_is_said_once(make_run, run_report, tmp_path):
    same, other = "The test split is the validation set, which chose the epoch too.", "No training step was made."
    make_run("logs/0", 0.5, record={"notes": [same, other]})
    make_run("logs/1", 0.6, seed=1, record={"notes": [same]})
    make_run("logs/2", 0.6, pooler="roi_pool", record={"notes": [same]})
    _, said = run_report(tmp_path / "logs")
    assert said.count(same) == 1
    assert f"{same} (" not in said
    assert f"{other} (1 of 3 runs)" in said


def test_mixed_revisions_machines_and_metrics_are_noted(make_run, run_report, tmp_path):
    make_run("logs/0", seed=0)
    gpu = {"cpu": "x86", "cores": 8, "gpus": ["H200"]}
    changed = {"git": {"revision": "b" * 40, "dirty": True}, "hardware": gpu, "versions": {"torch": "3.0"}}
    make_run("logs/1", seed=1, record=changed)
    make_run("logs/2", seed=2, record={"metrics": {"AR": 0.5}})
    _, said = run_report(tmp_path / "logs")
    assert "different git revisions: aaaaaaaaaa (1 run); bbbbbbbbbb with changes (1 run)" in said
    assert "different machines, so that times do not compare: x86, 2 cores (1 run); x86, 8 cores, H200 (1 run)" in said
    assert "different versions of packages: torch 2.9 (1 run); torch 3.0 (1 run)" in said
    assert "files that differed from their git revision" in said
    assert f"{tmp_path / 'logs' / '2'}: left out: it has no metric AP" in said


def test_nothing_to_report(make_run, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no run (a folder with config.yaml) and no benchmark" in refused(tmp_path / "empty")
    assert "nowhere: does not exist" in refused(tmp_path / "nowhere")
    (make_run("logs/0") / "metrics.json").write_text('{"metrics": {"AP"')
    assert "0: unreadable" in refused(tmp_path / "logs")
    make_run("more/0", finished=False)
    assert "0: incomplete" in refused(tmp_path / "more")


@pytest.mark.usefixtures("without_plots")
def test_an_output_that_is_no_folder(make_run, tmp_path, capsys):
    make_run("logs/0")
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        report.main([str(tmp_path / "logs"), "--output", str(tmp_path / "file")])
    assert end.value.code == 2
    assert f"error: cannot write {tmp_path / 'file'}: " in capsys.readouterr().err


@pytest.mark.usefixtures("without_plots")
def test_no_tables_of_an_earlier_report_stay(make_run, run_report, tmp_path):
    make_run("logs/0")
    run_report(tmp_path / "logs")
    assert (tmp_path / "report" / "runs.csv").exists()
    run_report(ROOT / "results" / "ops_cpu")
    assert not (tmp_path / "report" / "runs.csv").exists()
    assert not (tmp_path / "report" / "summary.csv").exists()


def test_one_run_of_an_older_version(make_run, run_report, tmp_path):
    nothing = {"errors": None, "step_seconds": None, "peak_memory_bytes": None, "git": {"revision": None}}
    make_run("logs/0", curves=False, record=nothing)
    page, said = run_report(tmp_path / "logs")
    assert said == ""
    assert len(page.pictures) == 3  # AP, over IoU thresholds, by size
    assert page.tables[-2][1] == ["pooler=roi_align", "-", "-", "-", "2.0"]
    assert page.tables[-1][1][3] == "unknown"


@pytest.mark.usefixtures("without_plots")
def test_text_of_runs_is_not_markup(make_run, run_report, tmp_path):
    make_run("logs/0", pooler="<b>&_|", record={"command": "train.py 'x=<script>alert(1)</script>'"})
    make_run("logs/1", pooler="[0]", record={"notes": ["a *note*"]})
    page, _ = run_report(tmp_path / "logs")
    assert not page.tags & {"script", "b"}
    assert "".join(page.tables[0][1][:-6]).startswith("pooler=<b>&_|")
    text, tables = ((tmp_path / "report" / name).read_text() for name in ("report.md", "report.tex"))
    assert "| pooler=\\<b\\>&\\_\\| |" in text
    assert "- **Note:** a \\*note\\* (1 of 2 runs)\n" in text
    assert "pooler=<b>\\&\\_| & " in tables


def test_latex_of_a_row_that_begins_with_a_bracket():
    cells = pd.DataFrame([["[x]_y", "50.0 ± 1.0"]], columns=["configuration", "Δ AP"])
    lookup = Table("Runs", cells, listing=True)
    part = Part("1", "a part", [], [Table("R&D_1", cells), lookup, Picture("plot", "a plot", {"svg": b""})])
    lines = [line.strip() for line in render(Report("a report", [], [part]), "report.tex").splitlines() if line]
    assert lines == [
        "% a part",
        *(r"\begin{table}", r"\centering", r"\caption{R\&D\_1}", r"\begin{tabular}{lr}", r"\toprule"),
        *(r"configuration & $\Delta$ AP \\", r"\midrule"),
        # Else it would be the optional argument of the line break before it.
        r"{}[x]\_y & 50.0 $\pm$ 1.0 \\",
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]


def test_benchmark_of_the_operators(run_report, tmp_path):
    page, said = run_report(ROOT / "results" / "ops_cpu" / "bench.json")
    timed = [row for row in table_of(ROOT / "results" / "ops_cpu" / "bench.csv") if row["status"] == "timed"]
    facts, times = page.tables
    assert json.loads((ROOT / "results" / "ops_cpu" / "bench.json").read_text())["command"] in facts[1]
    assert len(times) == 1 + len(timed)
    assert dict(zip(times[0], times[1], strict=True)).items() <= timed[0].items()
    assert {"operator", "implementation", "median_ms", "p20_ms", "p80_ms", "speedup"} <= set(times[0])
    assert len(page.pictures) == 1
    assert page.headings[0] == "1 benchmark"
    assert not (tmp_path / "report" / "runs.csv").exists()
    assert "rows were not timed" in said


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.mark.skipif(browser() is None, reason="needs Chromium (on Debian: apt-get install chromium)")
def test_page_in_a_browser_without_a_network(sweep, run_report, tmp_path):
    run_report(sweep)
    command = [str(browser()), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--window-size=1200,4000", f"--screenshot={tmp_path / 'page.png'}"]
    subprocess.run([*command, (tmp_path / "report" / "report.html").as_uri()], check=True, timeout=900)
    image = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert image.shape == (4000, 1200, 3)

    def rows_of(colour: str) -> np.ndarray:
        """Which rows of pixels hold a colour that only plots or only tables have."""
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return (abs(image - wanted).max(axis=2) <= 2).sum(axis=1)

    # Lines and bars of both configurations' colours: the plots were drawn, not left as broken pictures.
    assert (rows_of("#D55E00") > 0).sum() > 50
    assert (rows_of("#0072B2") > 0).sum() > 50
    # The line under a table's header, several hundred pixels wide: six tables.
    lines = rows_of("#888888") > 200
    assert np.count_nonzero(np.diff(lines.astype(int)) == 1) == 6
