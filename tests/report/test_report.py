"""tools/report.py from run directories to files, and what it says of bad ones."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import report
import yaml
from interval_coverage import detect, make_truth

from detpool.evaluation import CocoEvaluator
from detpool.evaluation.matches import read_matches, write_matches
from detpool.evaluation.resampling import resampled_ap
from detpool.report import plots
from detpool.report.build import build_report
from detpool.report.collect import collect
from detpool.report.plots import Picture
from detpool.report.statistics import RESAMPLES

ROOT = Path(__file__).parents[2]
without_plots = pytest.mark.usefixtures("_without_plots")


class Tags(HTMLParser):
    """Names of tags, sources of pictures, ids of sections, and whatever could make a browser fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.pictures: list[str] = []
        self.addresses: list[str] = []
        self.sections: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        if tag == "section":
            self.sections.append(dict(attrs)["id"])


def tables_of(text):
    """The tables of a Markdown page, without the lines under their headers."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = [[re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table.splitlines()] for table in found]
    return [[[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in (table[0], *table[2:])] for table in rows]


def table_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run_report(tmp_path, capsys):
    """`run_report(folder, ...)`: tables of the Markdown page, and what was said on standard error."""

    def run(*arguments):
        report.main([*map(str, arguments), "--output", str(tmp_path / "report")])
        return tables_of((tmp_path / "report" / "report.md").read_text()), capsys.readouterr().err

    return run


@pytest.fixture
def _without_plots(monkeypatch):
    """Spares the seconds of drawing where only words and numbers are looked at."""
    monkeypatch.setattr(plots, "_picture", lambda _, name, title, note="": Picture(name, title, {"svg": b"<svg/>"}))


@pytest.fixture
def refused(tmp_path, capsys):
    """`refused(folder, ...)`: the message of a report that cannot be made."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            report.main([*map(str, arguments), "--output", str(tmp_path / "report")])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        return error

    return run


def test_files_of_a_sweep_and_a_benchmark(sweep, run_report, tmp_path):
    arguments = [sweep, ROOT / "results" / "ops_cpu" / "bench.json"]
    tables, said = run_report(*arguments)
    # 50, 52, 51 and 51, 54, 57.
    assert tables[0] == [
        ["configuration", "seeds", "AP", "AP50", "AP75", "APs", "APm"],
        ["pooler=roi_pool", "3", "51.0 ± 1.0", "76.5 ± 1.5", "63.4 ± 1.2", "40.8 ± 0.8", "56.1 ± 1.1"],
        ["pooler=pr_roi_pool", "3", "54.0 ± 3.0", "81.0 ± 4.5", "67.1 ± 3.7", "43.2 ± 2.4", "59.4 ± 3.3"],
    ]
    # Of 1, 2 and 6: 3 +- 4.303 sqrt(7 / 3), and 44 seeds of that spread for 1 point.
    seeds, *_ = needed = tables[1][1][4:]
    assert tables[1][1][:4] == ["pooler=pr_roi_pool", "3", "+3.00", "-"]
    assert (seeds, needed[1:]) == ("[-3.57, +9.57]", ["-", "0.188", "-", "57", "-"])
    assert tables[2][1][:3] == ["pooler=pr_roi_pool", "3", "+3.00 [-3.57, +9.57]"]
    assert "6 of 6 runs have no matches.npz that can be used" in said
    assert tables[4][1][:4] == ["pooler=roi_pool", "60.0 ± 0.0", "5.0 ± 0.0", "10.0 ± 0.0"]
    assert tables[5][1] == ["pooler=roi_pool", "2.0 ± 0.0"]
    assert len(tables[6]) == 7
    assert tables[6][1] == ["pooler=roi_pool", "0", str(sweep / "0"), "a" * 10, "train.py pooler=roi_pool seed=0"]

    timed = [row for row in table_of(ROOT / "results" / "ops_cpu" / "bench.csv") if row["status"] == "timed"]
    facts, times = tables[7:]
    assert facts[1][1].startswith("python tools/bench_ops.py")
    assert len(times) == 1 + len(timed)
    assert {key: value for key, value in zip(times[0], times[1], strict=True) if value}.items() <= timed[0].items()
    assert {"operator", "implementation", "median_ms", "p20_ms", "p80_ms", "speedup"} <= set(times[0])
    assert "rows were not timed" in said

    folder = tmp_path / "report"
    text = (folder / "report.md").read_text()
    assert text.startswith("# 6 runs and 1 benchmark\n")
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line[:2] == "!["]
    assert len(pictures) == 6
    assert all((folder / picture).is_file() for picture in pictures)
    assert len(list((folder / "plots").glob("*.pdf"))) == 5
    assert r"pooler=pr\_roi\_pool & 3 & +3.00 [$-$3.57, +9.57]" in (folder / "report.tex").read_text()
    assert [(row["configuration"], row["seed"], row["AP"]) for row in table_of(folder / "runs.csv")][:2] == [
        ("pooler=roi_pool", "0", "0.5"),
        ("pooler=roi_pool", "1", "0.52"),
    ]
    rows = table_of(folder / "summary.csv")
    (row,) = [row for row in rows if row["metric"] == "AP" and row["baseline"] != row["configuration"]]
    numbers = {name: float(row[name]) for name in ("mean", "std", "difference", "seeds_low", "seeds_high", "p_holm")}
    expected = {
        "mean": 0.54,
        "std": 0.03,
        "difference": 0.03,
        "seeds_low": -0.0357,
        "seeds_high": 0.0957,
        "p_holm": 0.1885,
    }
    assert numbers == pytest.approx(expected, abs=1e-4)
    assert row["images_low"] == row["both_high"] == ""

    # The page needs no other file.
    page = Tags((folder / "report.html").read_text())
    assert not page.names & {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"}
    assert page.addresses == ["#1", "#benchmark1", *page.pictures]
    assert page.sections == ["1", "benchmark1"]
    kinds = [source.partition(";base64,") for source in page.pictures]
    assert [kind for kind, _, _ in kinds] == ["data:image/svg+xml"] * 5 + ["data:image/png"]
    for _, _, content in kinds[:5]:
        root = ElementTree.fromstring(base64.b64decode(content, validate=True))
        links = [v for element in root.iter() for k, v in element.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)

    # The same runs give the same files.
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run_report(*arguments)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@without_plots
def test_boxes_and_masks_stand_beside_each_other(make_run, run_report, tmp_path):
    for seed in range(2):
        for name, ap in (("roi_pool", 0.4), ("roi_align", 0.5)):
            make_run(f"logs/{name}{seed}", ap, seed=seed, pooler=name, masks=True)
    tables, _ = run_report(tmp_path / "logs", "--metric", "mask_AP75", "--baseline", "pooler=roi_pool")
    header, align, _ = tables[0]
    assert header[2:5] == ["mask_AP75", "mask_AP", "mask_AP50"]
    assert header[5:] == ["AP", "AP50", "AP75", "mask_APs", "mask_APm", "APs", "APm"]
    assert (align[3], align[5]) == ("40.0 ± 0.0", "50.0 ± 0.0")
    assert tables[2][0][-1] == "Δ AP"
    assert tables[2][1][-1].startswith("+10.00 [")
    tables, _ = run_report(tmp_path / "logs")
    assert tables[0][0][2:8] == ["AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"]
    assert tables[2][0][-1] == "Δ mask_AP"


@without_plots
def test_baseline_and_metric(sweep, run_report, refused):
    tables, _ = run_report(sweep, "--baseline", "pooler=pr_roi_pool", "--metric", "AP75")
    assert tables[0][0][:4] == ["configuration", "seeds", "AP75", "AP"]
    assert tables[1][0][2] == "Δ AP75"
    assert tables[1][1][0] == "pooler=roi_pool"
    assert tables[1][1][2].startswith("-3.")
    shutil.rmtree(sweep.parent / "report")
    assert "did you mean 'pooler=roi_pool'" in refused(sweep, "--baseline", "pooler=roi_pol")
    assert "did you mean 'AP75'" in refused(sweep, "--metric", "mask_AP75")
    assert not (sweep.parent / "report").exists()


@without_plots
def test_values_of_a_setting_get_parts_of_their_own_that_are_compared(make_run, run_report, refused, tmp_path):
    gains = {0.02: (0.01, 0.03), 0.2: (0.05, 0.04), 0.4: (0.0, 0.0)}
    for number, (rate, by_seed) in enumerate(gains.items()):
        for seed, gain in enumerate(by_seed):
            names = {"roi_pool": 0.4, "roi_align": 0.4 + gain} if rate < 0.4 else {"roi_align": 0.5, "roi_warp": 0.5}
            names |= {"z_pool": 0.3} if rate == 0.02 else {}
            for name, ap in names.items():
                make_run(f"logs/{number}/{name}{seed}", ap, seed=seed, pooler=name, **{"optim.optimizer.lr": rate})
    arguments = [tmp_path / "logs", "--baseline", "pooler=roi_pool"]
    assert "fits 2 configurations" in refused(*arguments)
    assert "did you mean 'optim.optimizer.lr'" in refused(*arguments, "--by", "optim.optimiser.lr")
    tables, said = run_report(*arguments, "--by", "optim.optimizer.lr")
    titles = list(dict.fromkeys(row["data"] for row in table_of(tmp_path / "report" / "runs.csv")))
    assert titles == [f"shapes, test split (optim.optimizer.lr={rate})" for rate in gains]
    differences = [table[1][:3] for table in tables if table[0][1] == "pairs" and table[0][-1] != "images for 1 point"]
    del differences[2]  # without the baseline
    assert [row[:2] for row in differences] == [["pooler=roi_align", "2"]] * 3
    # The last: 5 - 1 and 4 - 3, by how much more the configuration is above the baseline.
    assert [row[2].split()[0] for row in differences] == ["+2.00", "+4.50", "+2.50"]
    # Of 1 and 4: 2.5 +- 12.71 x 1.5.
    assert differences[2][2] == "+2.50 [-16.56, +21.56]"
    (row,) = [row for row in table_of(tmp_path / "report" / "across.csv") if row["metric"] == "AP"]
    assert [row["from"], row["to"]] == titles[:2]
    numbers = [float(row[name]) for name in ("difference", "seeds_low", "seeds_high")]
    assert numbers == pytest.approx([0.025, -0.1656, 0.2156], abs=1e-4)
    assert f"{titles[2]} is not compared with {titles[0]}" in said
    assert "different ways" not in said
    # No tables of an earlier report stay.
    _, said = run_report(ROOT / "results" / "pooling_cpu")
    assert said == ""
    assert list((tmp_path / "report").glob("*.csv")) == []


@without_plots
def test_a_grid_is_a_table_and_its_configurations_are_ranked(make_run, run_report, tmp_path):
    grid = {
        ("roi_pool", 32): 0.2,
        ("roi_pool", 8): 0.3,
        ("roi_align", 32): 0.3,
        ("roi_align", 8): 0.5,
        ("roi_align", 16): 0.4,
    }
    for (pooler, stride), ap in grid.items():
        for seed in range(2):
            settings = {"backbone": {"_target_": "a.backbone", "output_stride": stride}}
            make_run(f"logs/{pooler}-{stride}-{seed}", ap + 0.002 * seed, seed=seed, pooler=pooler, **settings)
    _, _, pivot, ranking, *_ = run_report(tmp_path / "logs", "--show", "pooler=roi_pool")[0]
    assert pivot == [
        ["backbone.output_stride", "pooler=roi_align", "pooler=roi_pool"],
        ["8", "50.1 ± 0.1", "30.1 ± 0.1"],
        ["16", "40.1 ± 0.1", "-"],
        ["32", "30.1 ± 0.1", "20.1 ± 0.1"],
    ]
    # The two of 30 % have the same mean; by rank they are the third and the fourth.
    assert [row[1:2] + row[3:] for row in ranking[1:]] == [
        ["1", "1"],
        ["2", "2"],
        ["3", "3 to 4"],
        ["4", "3 to 4"],
        ["5", "5"],
    ]


@without_plots
def test_notes_on_runs_and_intervals(sweep, make_run, run_report, tmp_path):
    make_run("logs/6", seed=3, pooler="roi_pool", finished=False)
    (sweep / "5" / "metrics.json").unlink()
    tables, said = run_report(sweep)
    page = (tmp_path / "report" / "report.html").read_text()
    for note in (
        f"{sweep / '5'}: incomplete: 3 of 3 epochs trained, no metrics.json",
        f"{sweep / '6'}: incomplete: 3 of 3 epochs trained, no metrics.json",
        "pooler=pr_roi_pool has no finished run of seed 2, which others have",
    ):
        assert note in said
        assert f"<li>{note}" in page
    assert [row[1] for row in tables[0][1:]] == ["3", "2"]
    # Of the seeds that both have: 1 and 2.
    assert tables[2][1][1:3] == ["2", "+1.50 [-4.85, +7.85]"]
    make_run("logs/7", pooler="roi_warp")
    _, said = run_report(sweep)
    assert "Not all configurations share two seeds with the baseline (not pooler=roi_warp)" in said
    assert "pooler=roi_warp has no finished run of seeds 1, 2, which others have" in said


@without_plots
def test_the_report_begins_with_its_answer(sweep, make_run, run_report, tmp_path):
    def answers():
        text = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
        return dict(re.findall("^- (.*?): (.*)", text.partition("## ")[0], re.MULTILINE))

    run_report(sweep)
    assert answers() == {
        "best": "pooler=pr_roi_pool: AP 54.0 ± 3.0 %, 3 seeds",
        "by how much": "+3.00 [-3.57, +9.57] points above pooler=roi_pool, the baseline (95 % interval, seeds alone)",
        "beyond seeds": "no, [-3.57, +9.57] (Student's t, 3 pairs)",
        "beyond images": "not known",
        "beyond both": "not known",
        "not told apart": "pooler=roi_pool",
        "cost": "not measured (tools/cost.py does it)",
        "to see 1 point": "57 seeds on these images",
    }
    for seed in range(3):  # 30 points worse in each seed, so that the baseline is the best
        make_run(f"logs/{seed + 6}", 0.24 + 0.01 * seed, seed=seed, pooler="roi_warp")
    run_report(sweep, "--baseline", "pooler=pr_roi_pool")
    assert answers()["by how much"].startswith("+3.00 [-3.57, +9.57] points above pooler=roi_pool, the second best")
    assert answers()["not told apart"] == "pooler=roi_pool"


@without_plots
def test_an_answer_says_of_which_seeds_it_is(make_run, tmp_path):
    """The best by the mean of all its seeds may be the worse one in those that both have."""

    def answer():
        return build_report(collect([tmp_path / "logs"]), baseline="pooler=roi_pool").parts[0].answer

    make_run("logs/0", 0.5, seed=0, pooler="roi_pool")
    make_run("logs/1", 0.9, seed=1)
    assert answer()["by how much"] == "not known: it has no seed in common with pooler=roi_pool, the baseline"
    make_run("logs/2", 0.4, seed=0)
    expected = "-10.00 points above pooler=roi_pool, the baseline (over the 1 seed that both have)"
    assert answer()["by how much"] == expected
    for seed, ap in enumerate([0.501, 0.502], 1):
        make_run(f"logs/{seed + 2}", ap, seed=seed, pooler="roi_pool")
        make_run(f"logs/{seed + 4}", ap + 0.1, seed=seed, pooler="roi_warp")
    make_run("logs/7", 0.6, seed=0, pooler="roi_warp")
    for folder in ("1", "2"):
        shutil.rmtree(tmp_path / "logs" / folder)
    told = answer()
    assert told["by how much"].endswith("the baseline (95 % interval, seeds alone)")
    assert told["not told apart"] == "none: p is below 0.05 for each of the others, corrected by Holm's method"


@without_plots
def test_sections_of_which_one_has_masks_are_compared_by_boxes(make_run, run_report, tmp_path):
    for number, masks in enumerate([True, False]):
        for place, (pooler, seed) in enumerate(itertools.product(["roi_pool", "roi_align"], [0, 1])):
            model = {"_target_": "detpool.detection.mask_rcnn" if masks else "detpool.detection.faster_rcnn"}
            ap = 0.5 + (number + 1) * 0.01 * place
            make_run(f"logs/{number}{place}", ap, seed=seed, pooler=pooler, masks=masks, model=model)
    tables, _ = run_report(tmp_path / "logs", "--by", "model", "--baseline", "pooler=roi_pool")
    header, row = tables[-1]
    assert [header[2], header[-1]] == ["Δ AP", "Δ mask_AP"]
    assert row[2].startswith("+2.00")
    assert row[-1] == "-"


@pytest.fixture
def simulated(tmp_path):
    """Two poolers with two seeds and matches, the second of which is better."""
    truth = make_truth(40)
    evaluator = CocoEvaluator(truth)
    for place, seed in itertools.product(range(2), range(2)):
        rows = detect(truth, 0.1 - 0.002 * place, 2 * place + seed, false=30)
        run = tmp_path / "study" / f"pool_{place}_seed_{seed}"
        config = {"data": {"_target_": "simulated", "val_images": 40}, "evaluation": {"split": "val"}, "seed": seed}
        config["pooler"] = {"operator": {"_target_": f"simulated.pool_{place}"}}
        write_matches(run / "matches.npz", {"bbox": evaluator.matches(rows)})
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "metrics.json").write_text(json.dumps({"metrics": evaluator.evaluate(rows)}))
    return tmp_path / "study"


@without_plots
def test_images_are_resampled_where_runs_have_matches(simulated, run_report, tmp_path):
    tables, said = run_report(simulated)
    assert "matches" not in said
    runs = [[read_matches(simulated / f"pool_{i}_seed_{seed}" / "matches.npz") for seed in range(2)] for i in range(2)]
    values = [[resampled_ap(run, RESAMPLES) for run in each] for each in runs]
    for name in ("AP", "AP75"):
        gains = np.mean([second[name] - first[name] for first, second in zip(*values, strict=True)], axis=0)
        (row,) = [r for r in table_of(tmp_path / "report" / "summary.csv") if r["metric"] == name and r["difference"]]
        assert float(row["difference"]) == pytest.approx(gains[0], abs=1e-12)
        low, high = np.quantile(gains[1:], [0.025, 0.975])
        assert [float(row["images_low"]), float(row["images_high"])] == pytest.approx([low, high])
        assert float(row["both_low"]) < low < high < float(row["both_high"])
    shown = tables[1][1]
    assert all(re.fullmatch(r"\[[+-].*, [+-].*\]", shown[i]) for i in (3, 4, 5))
    assert shown[7] in ("seeds", "images")
    assert "(bootstrap, 40 images)" in (tmp_path / "report" / "report.html").read_text()
    # AP of small objects is not resampled.
    (row,) = [r for r in table_of(tmp_path / "report" / "summary.csv") if r["metric"] == "APs" and r["difference"]]
    assert row["seeds_low"] != row["images_low"] == row["both_low"] == ""


@without_plots
def test_matches_of_a_later_evaluation_serve_the_run_and_bad_ones_do_not(simulated, run_report, tmp_path):
    first, second, third, _ = sorted(simulated.iterdir())
    kept = (first / "matches.npz").read_bytes()
    (first / "matches.npz").unlink()
    _, said = run_report(simulated)
    assert "1 of 4 runs have no matches.npz that can be used" in said
    assert f"`python eval.py ckpt_path=RUN run_dir=RUN/eval` adds it, for instance with RUN={first};" in said
    # What that command leaves; the run has training curves, and stays.
    (first / "csv").mkdir()
    (first / "csv" / "metrics.csv").write_text("epoch,val/AP\n0,0.1\n")
    (first / "eval").mkdir()
    for name in ("config.yaml", "metrics.json"):
        shutil.copy(first / name, first / "eval" / name)
    (first / "eval" / "matches.npz").write_bytes(kept)
    _, said = run_report(simulated)
    assert f"{first} has its matches from {first / 'eval'}, an evaluation of it" in said
    assert "no matches.npz" not in said
    assert "left out" not in said
    assert len(table_of(tmp_path / "report" / "runs.csv")) == 4

    (second / "matches.npz").write_bytes(kept)  # of another run
    (third / "matches.npz").write_bytes(kept[:100])
    _, said = run_report(simulated)
    assert f"{second / 'matches.npz'} gives AP 0." in said
    assert f"{third / 'matches.npz'} is not a file of matches, or damaged" in said
    assert "2 of 4 runs have no matches.npz that can be used" in said


@without_plots
def test_notes_on_what_differs_and_what_runs_say(make_run, run_report, tmp_path):
    same, other = "The test split is the validation set, which chose the epoch too.", "No training step was made."
    make_run("logs/0", 0.5, record={"notes": [same, other]})
    gpu = {"cpu": "x86", "cores": 8, "gpus": ["H200"]}
    changed = {"git": {"revision": "b" * 40, "dirty": True}, "hardware": gpu, "versions": {"torch": "3.0"}}
    make_run("logs/1", seed=1, pooler="roi_pool", record={"notes": [same], **changed})
    make_run("logs/2", seed=2, record={"metrics": {"AR": 0.5}})
    make_run("logs/3", 0.6, seed=1, record={"notes": [same]}, **{"data.size": 64})
    tables, said = run_report(tmp_path / "logs")
    for note in (
        "No configuration shares two seeds with the baseline: without, nothing is known of the chance of seeds",
        "different git revisions: aaaaaaaaaa (1 run); bbbbbbbbbb with changes (1 run)",
        "different machines, so that times do not compare: x86, 2 cores (1 run); x86, 8 cores, H200 (1 run)",
        "different versions of packages: torch 2.9 (1 run); torch 3.0 (1 run)",
        "files that differed from their git revision",
        f"{tmp_path / 'logs' / '2'}: left out: it has no metric AP",
        f"shapes, test split (size=128): {same}\n",
        f"{other} (1 of 2 runs)",
        "evaluated in 2 different ways: on other data sets, splits or image sizes",
    ):
        assert note in said
    summaries = [table[1] for table in tables if table[0][:2] == ["configuration", "seeds"]]
    assert [row[1:3] for row in summaries] == [["1", "50.0"], ["1", "60.0"]]


@without_plots
def test_what_was_trained_stands_on_top_and_what_failed_is_folded(make_run, run_report, tmp_path):
    classes, images = [f"c{i}" for i in range(3)], {"images": {"train": 1000, "val": 200}}
    backbone = {"_target_": "detpool.detection.backbones.resnet", "weights": None, "output_stride": 16}
    for seed, pooler in enumerate(["roi_pool", "pr_roi_pool"]):
        model = {"_target_": "detpool.detection.mask_rcnn", "rpn": {"_target_": "x.RPN"}, "weights": None}
        mask_pooler = {"_target_": "detpool.poolers.RoIPooler", "operator": {"_target_": "detpool.ops.roi_align"}}
        settings = {"class_names": classes, "model": model, "mask_pooler": mask_pooler}
        settings["backbone"] = backbone | {"depth": seed}
        settings["data.eval_transform"] = {"min_size": 800, "max_size": 1333, "size": None}
        settings["data.size"] = None
        make_run(f"logs/{seed}", seed=seed, pooler=pooler, record=images, **settings)
    make_run("logs/2", finished=False)
    run_report(tmp_path / "logs")
    page, text, latex = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md", "tex"))
    facts = {
        "model": "mask_rcnn",
        "backbone": "resnet(output_stride=16, depth=varies)",
        "pooler": "RoIPooler(output_size=7, operator=varies)",
        "mask pooler": "RoIPooler(operator=roi_align)",
        "optimizer": "SGD(lr=0.02)",
        "classes": "3",
        "images": "1000 training, 200 validation and test",
        "image size": "evaluation: shorter side 800, longer at most 1333",
        "epochs": "3",
        "batch size": "8",
        "seeds": "0, 1",
    }
    questions = ["best", "by how much", "beyond seeds", "beyond images", "beyond both", "not told apart", "cost"]
    for pairs in (
        re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page),
        re.findall(r"^- (?!\*)(.*?): (.*)", text.replace("\\", ""), re.MULTILINE),
    ):
        assert [name for name, _ in pairs[: len(questions)]] == questions
        assert pairs[len(questions) :] == list(facts.items())
    assert re.findall("^%   (.*?): (.*)", latex, re.MULTILINE) == list(facts.items())
    summary = "<details><summary>Not in the numbers: 1 (failed, incomplete, unreadable or left out)</summary>"
    folded = page.partition(summary)[2].partition("</details>")[0]
    assert f"<li>{tmp_path / 'logs' / '2'}: incomplete" in folded
    assert "<nav>" not in page  # of a single section


@without_plots
def test_classes_that_differ_most_have_a_table(make_run, run_report, tmp_path):
    for seed in range(2):
        for place, pooler in enumerate(["roi_pool", "pr_roi_pool"]):
            # Class i is i/1000 better with the second pooler, in odd classes worse.
            metrics = {f"AP/{i:02}": 0.5 + place * (-1) ** i * i / 1000 for i in range(80)} | {"AP/none": None}
            make_run(f"logs/{pooler}{seed}", seed=seed, pooler=pooler, record={"metrics": {"AP": 0.5} | metrics})
    tables, _ = run_report(tmp_path / "logs")
    text = (tmp_path / "report" / "report.md").read_text()
    assert tables[2][0] == ["configuration", *(f"{i:02}" for i in range(79, 59, -1))]
    assert tables[2][1][1:3] == ["42.1 ± 0.0", "57.8 ± 0.0"]
    assert "The 20 of 80 classes whose means differ most between configurations, by that; summary.csv has all" in text
    assert len([row for row in table_of(tmp_path / "report" / "summary.csv") if row["metric"] == "AP/05"]) == 2
    # Of one configuration those of the lowest AP.
    metrics = {"AP": 0.5} | {f"AP/{i:02}": 0.9 - i / 100 for i in range(80)}
    make_run("one/0", record={"metrics": metrics})
    tables, _ = run_report(tmp_path / "one")
    assert tables[1][0][1:] == [f"{i:02}" for i in range(79, 59, -1)]


@without_plots
def test_nothing_to_report(make_run, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no run (a folder with config.yaml) and no benchmark" in refused(tmp_path / "empty")
    (make_run("logs/0") / "metrics.json").write_text('{"metrics": {"AP"')
    assert "0: unreadable" in refused(tmp_path / "logs")
    make_run("more/0")
    (tmp_path / "report").touch()
    assert f"error: cannot write {tmp_path / 'report'}: " in refused(tmp_path / "more")


@without_plots
def test_one_run_of_an_older_version(make_run, run_report, tmp_path):
    nothing = dict.fromkeys(("errors", "step_seconds", "peak_memory_bytes", "git", "notes"))
    make_run("logs/0", curves=False, record=nothing | {"metrics": {"AP": 0.5}})
    tables, said = run_report(tmp_path / "logs")
    assert said == ""
    metrics, duration, runs = tables
    assert metrics[1] == ["pooler=roi_align", "1", "50.0"]
    assert duration[1] == ["pooler=roi_align", "2.0"]
    assert runs[1][3] == "unknown"
    # Nothing to compare between sections either.
    make_run("logs/1", pooler="roi_pool", **{"optim.optimizer.lr": 1})
    _, said = run_report(tmp_path / "logs", "--by", "optim.optimizer.lr")
    assert "(optim.optimizer.lr=1) is not compared with shapes, test split (optim.optimizer.lr=0.02)" in said


@without_plots
def test_text_of_runs_is_not_markup(make_run, run_report, tmp_path):
    make_run("logs/0", pooler="<b>&_|", record={"command": "train.py 'x=<script>alert(1)</script>'"})
    make_run("logs/1", record={"notes": ["a *note*"]})
    tables, _ = run_report(tmp_path / "logs")
    assert tables[0][1][0] == "pooler=<b>&_|"
    page, text, latex = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md", "tex"))
    assert not Tags(page).names & {"script", "b"}
    assert '<td class="word">pooler=&lt;b&gt;&amp;_|</td>' in page
    assert "- **Note:** a \\*note\\* (1 of 2 runs)\n" in text
    assert r"pooler=\textless{}b\textgreater{}\&\_\textbar{} & " in latex
