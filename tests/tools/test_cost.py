"""Turns with a clock that is known, receptive fields of known networks, memory and energy, and the whole program."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import cost
import pytest
import torch
from costs.energy import find_meter, joules_between
from costs.memory import peak_bytes
from costs.receptive_field import receptive_fields
from costs.turns import LEAST_TURNS, order_of, take_turns
from torch import Tensor, nn

from detpool.layers import LpPool2d, MaxPool2d
from detpool.report.costs import read_costs

CPU = torch.device("cpu")
SMALL = [
    *("data.size=64", "data.train_images=4", "data.val_images=4", "data.batch_size=2", "backbone.widths=[8,8,8,8]"),
    *("model.fpn_channels=8", "head_pool.channels=16", "model.rpn.anchor_sizes=[[8],[16],[32],[48]]"),
]


def test_models_take_turns_and_the_first_turn_does_not_count() -> None:
    now, order = 0.0, []

    def call(name: str, seconds: float) -> dict[str, float]:
        nonlocal now
        now += seconds
        order.append(name)
        return {"forward": now}

    calls = {name: lambda name=name: call(name, 1.0) for name in "ABC"}
    found = take_turns(calls, turns=12, budget=0, clock=lambda: now)
    turns = ["".join(order[n : n + 3]) for n in range(0, len(order), 3)]
    assert turns[1:5] == ["ABC", "CBA", "BCA", "ACB"]
    assert len(turns) == 1 + LEAST_TURNS  # no budget is left after these
    assert all(sorted(turn) == list("ABC") for turn in turns)
    assert {name: len(times["forward"]) for name, times in found.items()} == dict.fromkeys("ABC", LEAST_TURNS)
    assert found["A"]["forward"][0] == 4  # after the three calls of the turn before
    order.clear()
    take_turns(calls, turns=3, budget=1e9, clock=lambda: now)
    assert len(order) == 3 * 4
    order.clear()
    take_turns(calls, 90, 1e9, lambda found: len(found["A"]["forward"]) == LEAST_TURNS + 2, lambda: now)
    assert len(order) == 3 * (1 + LEAST_TURNS + 2)


@pytest.mark.parametrize("names", ["AB", "ABC", "ABCDE"])
def test_each_model_is_as_often_at_each_place(names: str) -> None:
    orders = [order_of(turn, names) for turn in range(2 * len(names))]
    for place in range(len(names)):
        assert set(Counter(order[place] for order in orders).values()) == {2}


class Maps(nn.Module):
    def __init__(self, **maps: nn.Module) -> None:
        super().__init__()
        self.maps = nn.ModuleDict(maps)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: layers(images) for name, layers in self.maps.items()}


def conv(kernel: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    return nn.Conv2d(3, 3, kernel, stride, dilation * (kernel // 2), dilation)


def by_formula(*layers: tuple[int, int, int]) -> int:
    """Kernel, stride and dilation of each layer: what it adds is its reach times the strides before it."""
    field, jump = 1, 1
    for kernel, stride, dilation in layers:
        field, jump = field + (kernel - 1) * dilation * jump, jump * stride
    return field


def test_receptive_fields_of_known_networks() -> None:
    found = receptive_fields(
        Maps(
            strided=nn.Sequential(conv(3, 2), conv(3, 2), conv(3, 2)),
            stem=nn.Sequential(conv(7, 2), nn.ReLU(), MaxPool2d(3, 2), nn.BatchNorm2d(3), conv(3, 1, 2)),
            powers=nn.Sequential(conv(3, 2), LpPool2d(3)),
            large=nn.Sequential(conv(3, 16), conv(31, 1)),
        )
    )
    assert found == {
        "strided": by_formula((3, 2, 1), (3, 2, 1), (3, 2, 1)),
        "stem": by_formula((7, 2, 1), (3, 2, 1), (3, 1, 2)),
        "powers": by_formula((3, 2, 1), (3, 2, 1)),
        "large": by_formula((3, 16, 1), (31, 1, 1)),  # 483, more than the first image that is tried
    }
    assert found["strided"] == 15
    found = receptive_fields(Maps(whole=nn.AdaptiveAvgPool2d(1), known=nn.Sequential(conv(3), Known())))
    assert found == {"whole": "image", "known": None}  # JSON has no infinity


class Known(nn.Module):
    """Makes a number of what is none."""

    def forward(self, features: Tensor) -> Tensor:
        return features.nan_to_num()


def test_memory_is_what_a_call_holds_at_most() -> None:
    weight = torch.rand(1000, 1000, requires_grad=True)  # 4 MB, which was there before

    def step() -> None:
        squares = weight * weight  # 4 MB, which the exponential does not need, and its result, which the backward does
        loss = squares.exp().sum()
        del squares
        loss.backward()
        weight.grad = None

    step()
    peak = peak_bytes(step, CPU)
    assert peak == peak_bytes(step, CPU)
    # The result, the gradient of it and that of the squares; then two factors' gradients and their sum.
    assert 12e6 <= peak <= 16.1e6
    assert peak_bytes(lambda: torch.empty(1 << 20).numpy() is None, CPU) == pytest.approx(4 << 20, abs=4096)
    assert peak_bytes(lambda: None, CPU) == 0


def test_energy_of_processors(tmp_path: Path) -> None:
    assert find_meter(CPU, tmp_path / "nowhere")[1] == []
    for name, energy in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 7_000_000), ("intel-rapl:0:0", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("20000000\n")
    read, limits = find_meter(CPU, tmp_path)
    before = read()
    assert before == [5, 7]  # of the packages, not of a part of one
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("8000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000")  # began anew at 20 J
    assert joules_between(before, read(), limits) == 3 + 14
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert find_meter(CPU, tmp_path)[1] == []


def test_mistakes_end_it_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["study=smalest"], "study=smalest does not exist; did you mean 'smallest'?"),
        (["pooler=roi_pool,roi_algn"], "pooler=roi_algn does not exist; did you mean 'roi_align'?"),
        (["study=smallest", "turn=3"], "there is no option turn; did you mean 'turns'?"),
        (["study=smallest", "turns=0"], "turns: must be a positive whole number, got '0'"),
        (["study=smallest", "baseline=roi_pool"], "baseline=roi_pool is no configuration of these; did you mean"),
    ):
        with pytest.raises(SystemExit) as end:
            cost.main(arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_a_study_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    words = ["study=smallest", "pooler=roi_align,roi_align,roi_pool", *SMALL, "turns=2", f"output={tmp_path}"]
    try:
        cost.main([*words, "baseline=pooler=roi_align"])
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "Time of a training step and of inference" in said
    assert "note: a ratio is known to ± inf %" in said
    rows = {row["configuration"]: row for row in csv.DictReader((tmp_path / "cost.csv").open())}
    assert list(rows) == ["pooler=roi_align", "pooler=roi_align (2)", "pooler=roi_pool"]
    one, same, other = rows.values()
    assert all(float(row[f"{phase}_ms"]) > 0 for row in rows.values() for phase in ("forward", "backward", "inference"))
    # Whatever no clock tells is the same of the same model, and so is the work of all.
    fixed = [name for name in one if name.endswith(("_gflop", "_mib", "parameters", "receptive_field"))]
    assert len(fixed) == 6
    assert all(one[name] == same[name] for name in fixed)
    assert {row["step_rois"] for row in rows.values()} == {one["step_rois"]} != {"0"}
    assert {row["inference_detections"] for row in rows.values()} == {"200"}  # 100 of each of two images
    assert one["step_gflop"] != other["step_gflop"]
    assert one["step_joules"] == "nan" or float(one["step_joules"]) > 0
    costs = read_costs(tmp_path / "cost.json")
    assert [len(each.runs) for each in costs.configurations] == [2, 2, 2]  # seeds
    assert [len(each.seconds["forward"]) for each in costs.configurations] == [2, 2, 2]
    record = json.loads((tmp_path / "cost.json").read_text())
    assert record["command"].startswith("python tools/cost.py study=smallest")
    assert record["measured"].startswith("CPU time of the process, 1 thread; energy")
    assert {"git", "versions", "hardware", "load_average"} <= record.keys()
