"""The microbenchmark: what it finds, checks, counts and writes. No test depends on a time."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_ops
import pytest
import torch
from bench import run
from bench.contenders import BACKWARD, BOX_BACKWARD, FORWARD, Absent, Case, Contender, expected_results
from bench.operators import discover, examine, functions_of
from bench.output import Table
from bench.peers import PEERS, Peer, openvino_peer, torchvision_peer
from bench.run import TOLERANCES, Row, Settings, compare, run_case, tolerance_of
from bench.timing import LEAST_ROUNDS, interleave, summarize
from bench.traffic import bytes_moved
from bench.workloads import WORKLOADS, Workload, build

from detpool import ops

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def quick_case(name: str = "roi_align", direction: str = FORWARD, workload: str = "c4") -> Case:
    operator = examine(name, functions_of())
    return Case(WORKLOADS[workload](True), operator, direction, torch.float32, threads=1, sampling_ratio=2)


def quick_settings(peers: Mapping[str, Peer], yardsticks: dict[bool, Any] | None = None) -> Settings:
    return Settings(["reference"], ["contiguous"], peers, yardsticks or {}, rounds=2, budget=60)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_stand_in_columns() -> None:
    table = Table("title", ["operator"], ["ms", "x"], ["remarks"])
    table.add_row("a", "10.00", "1", "in words")
    table.add_gap()
    table.add_row("much longer", "2.50", "12", "")
    lines = str(table).splitlines()
    assert lines[1:4] == ["title", "", "operator        ms   x  remarks"]
    assert lines[4] == "-" * 32
    assert lines[5:] == ["a            10.00   1  in words", "", "much longer   2.50  12"]


def test_quick_run_writes_valid_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--quick --threads 1 --rounds 2 --workloads c4 fpn --operators roi_align pr_roi_pool --box-gradients"
    assert bench_ops.main([*options.split(), "--output", str(tmp_path)]) == 0
    assert "not timed: torchvision: has no such operator (pr_roi_pool)" in capsys.readouterr().out

    rows = rows_of(tmp_path / "bench.csv")
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Row)]
    for row in rows:
        if row["status"] == "timed":
            assert float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
            assert float(row["error"]) <= float(row["tolerance"])
            assert int(row["rounds"]) == 2
    ours = [row for row in rows if row["implementation"] == "detpool cpu"]
    assert len(ours) == 2 * 2 * 3 * 2  # workloads, operators, directions, layouts
    assert {row["status"] for row in ours} == {"timed"}
    assert {row["baseline"] for row in ours if row["operator"] == "roi_align"} == {"torchvision"}
    assert {row["baseline"] for row in ours if row["operator"] == "pr_roi_pool"} == {"detpool cpu roi_align"}
    torchvision = [row for row in rows if row["implementation"] == "torchvision" and row["operator"] == "roi_align"]
    assert {row["status"] for row in torchvision} == {"timed"}
    assert {float(row["speedup"]) for row in torchvision} == {1.0}

    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["command"] == f"python tools/bench_ops.py {options} --output {tmp_path}"
    assert record["settings"]["sampling_ratio"] == 2
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["hardware"]["cores"] >= 1
    assert set(record["git"]) == {"revision", "dirty"}
    assert (tmp_path / "bench.png").read_bytes().startswith(PNG)


def test_scaling_writes_valid_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--scaling --quick --threads 1 --rounds 1 --operators roi_pool --directions forward"
    assert bench_ops.main([*options.split(), "--output", str(tmp_path)]) == 0
    assert "ms by cells per bin" in capsys.readouterr().out
    rows = rows_of(tmp_path / "scaling.csv")
    values = {(row["workload"], float(row["value"])) for row in rows}
    assert {("RoIs", 4), ("channels", 16), ("bins", 49), ("cells per bin", 0.25)} <= values
    assert {row["implementation"] for row in rows} == {"detpool cpu", "torchvision"}
    assert (tmp_path / "scaling_forward.png").read_bytes().startswith(PNG)
    assert json.loads((tmp_path / "scaling.json").read_text())["settings"]["scaling"] is True


def test_a_peer_that_disagrees_is_reported_and_not_timed() -> None:
    case = quick_case(direction=BACKWARD)
    calls = []

    def wrong_peer(case: Case) -> Contender:
        right = torchvision_peer(case)

        def check() -> dict[str, list[torch.Tensor]]:
            calls.append("check")
            results = right.check()
            results["feature gradient"][0][1, 0, 0, 0] += 1e-3
            return results

        return Contender(lambda: calls.append("run") or right.run(), check)

    ours, wrong = run_case(case, quick_settings({"torchvision": wrong_peer}))
    assert wrong.status == "disagrees"
    assert "1 of" in wrong.note
    assert wrong.error is not None
    assert wrong.error > wrong.tolerance
    assert wrong.median_ms is None
    assert calls == ["check"]
    assert ours.status == "timed"
    assert ours.speedup is None


def test_ours_that_disagrees_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Contender:
        def call() -> dict[str, list[torch.Tensor]]:
            return {"output": [torch.zeros(16, 8, 7, 7)]}

        return Contender(call, call)

    monkeypatch.setattr(run, "detpool_contender", wrong)
    options = "--quick --threads 1 --rounds 1 --workloads c4 --operators roi_pool --directions forward --peers"
    assert bench_ops.main([*options.split(), "--output", str(tmp_path)]) == 1
    assert {row["status"] for row in rows_of(tmp_path / "bench.csv")} == {"disagrees"}
    assert not (tmp_path / "bench.png").exists()


def test_peers_that_are_absent_or_break_leave_the_others_alone() -> None:
    def absent(case: Case) -> Contender:
        raise Absent("not today")

    def broken(case: Case) -> Contender:
        raise RuntimeError("out of order")

    peers = {"absent": absent, "broken": broken, "torchvision": torchvision_peer}
    rows = {row.implementation: row for row in run_case(quick_case("roi_pool"), quick_settings(peers))}
    assert (rows["absent"].status, rows["absent"].note) == ("absent", "not today")
    assert (rows["broken"].status, rows["broken"].note) == ("failed", "RuntimeError: out of order")
    assert rows["torchvision"].status == "timed"
    assert rows["detpool reference"].baseline == "torchvision"


def test_a_peer_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Absent, match="not installed"):
        openvino_peer(quick_case())


@pytest.mark.parametrize(
    ("operator", "workload", "peer"),
    [
        ("roi_align", "c4", "openvino"),
        ("roi_pool", "mask", "openvino"),
        ("ps_roi_pool:convention=rfcn", "rfcn", "openvino"),
        ("roi_align", "mask", "onnxruntime"),
        ("roi_pool", "c4", "onnxruntime"),
    ],
)
def test_models_of_peers_agree(operator: str, workload: str, peer: str) -> None:
    pytest.importorskip(peer)
    rows = run_case(quick_case(operator, workload=workload), quick_settings({peer: PEERS[peer]}))
    assert {row.status for row in rows} == {"timed"}


def test_torchvision_agrees_forward_and_backward() -> None:
    for operator, workload in (("roi_align", "fpn"), ("roi_pool", "c4"), ("ps_roi_pool", "rfcn")):
        case = quick_case(operator, BACKWARD, workload)
        half = dataclasses.replace(case, dtype=torch.float16)
        rows = [row for c in (case, half) for row in run_case(c, quick_settings({"torchvision": torchvision_peer}))]
        assert {row.status for row in rows} == {"timed"}
        assert rows[3].note == "computes in float32"


def test_operators_that_torchvision_lacks_are_compared_with_ours() -> None:
    settings = quick_settings({"torchvision": torchvision_peer}, {False: examine("roi_align", functions_of())})
    ours, torchvision = run_case(quick_case("pr_roi_pool", BOX_BACKWARD), settings)
    assert ours.baseline == "detpool reference roi_align"
    assert ours.speedup is not None
    assert torchvision.status == "absent"


def test_summary() -> None:
    summary = summarize([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert (summary.p20, summary.median, summary.p80, summary.rounds) == (2.0, 3.5, 5.0, 6)


def test_calls_take_turns() -> None:
    log: list[str] = []
    times = interleave({name: lambda name=name: log.append(name) for name in "abc"}, rounds=4, budget=60)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 4, "b": 4, "c": 4}
    turns = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert all(len(set(turn)) == 1 for turn in turns)  # each call twice before it is timed
    assert len(turns) == 3 * 4
    assert all({turn[0] for turn in turns[i : i + 3]} == set("abc") for i in range(0, len(turns), 3))


def test_the_budget_ends_the_rounds_but_for_the_first_few() -> None:
    assert len(interleave({"a": lambda: None}, rounds=50, budget=0)["a"]) == LEAST_ROUNDS


def test_agreement() -> None:
    truth, tolerance = {"output": [torch.tensor([[1.0, 200.0]])]}, TOLERANCES[torch.float32]
    error, _ = compare({"output": [torch.tensor([[1.001, 200.0]])]}, truth, tolerance)
    assert error <= tolerance  # 1e-3 of 200
    error, worst = compare({"output": [torch.tensor([[1.1, 200.0]])]}, truth, tolerance)
    assert error == pytest.approx(0.1 / 200, rel=1e-4)
    assert worst.startswith("output: 1 of 2")
    for wrong in (torch.tensor([[1.0, math.nan]]), torch.tensor([1.0, 200.0])):
        assert compare({"output": [wrong]}, truth, tolerance)[0] == math.inf


def test_rotated_positions_on_large_maps_may_be_rounded() -> None:
    case = quick_case("roi_align_rotated")
    assert tolerance_of(case) == TOLERANCES[torch.float32]
    wide = dataclasses.replace(case.workload, features=(torch.zeros(1, 1, 4, 1000),))
    assert tolerance_of(dataclasses.replace(case, workload=wide)) == pytest.approx(1000 * 2**-23)
    upright = dataclasses.replace(quick_case("roi_align"), workload=wide)
    assert tolerance_of(upright) == TOLERANCES[torch.float32]
    wide_halves = dataclasses.replace(case, workload=wide, dtype=torch.float16)
    assert tolerance_of(wide_halves) == TOLERANCES[torch.float16]


def test_the_reference_is_not_computed_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("bench.run.expected_results", lambda case: asked.append(case.operator.name))
    settings = dataclasses.replace(quick_settings({}), backends=["cpu"], yardsticks={})
    assert {row.status for row in run_case(quick_case("roi_pool_rotated"), settings)} == {"absent"}
    assert asked == []


def test_operators_are_found_by_looking() -> None:
    found, refused = discover(functions_of())
    assert {"roi_align", "roi_pool", "ps_roi_pool", "pr_roi_pool"} <= found.keys()
    assert found["ps_roi_pool"].position_sensitive
    assert found["pr_roi_pool:position_sensitive=True"].position_sensitive
    assert not found["pr_roi_pool"].position_sensitive
    assert found["pr_roi_pool"].box_gradients
    assert not found["roi_pool"].box_gradients
    assert found.keys() | refused.keys() >= functions_of().keys()


def test_arguments_make_an_operator_another_one() -> None:
    operator = examine("pool:channels=position_sensitive,sampling=integral,reduction=sum", functions_of())
    assert operator.position_sensitive
    assert operator.keywords == {"channels": "position_sensitive", "sampling": "integral", "reduction": "sum"}
    assert examine("roi_align:aligned=True", functions_of()).keywords == {"aligned": True}


def test_operators_of_others_are_measured_or_refused_with_a_reason() -> None:
    def doubled(input: torch.Tensor, boxes: torch.Tensor, output_size: Any, spatial_scale: float) -> torch.Tensor:
        return 2 * ops.roi_align(input, boxes, output_size, spatial_scale)

    def needy(input: torch.Tensor, boxes: torch.Tensor, output_size: Any, spatial_scale: float, wish: int) -> None: ...

    def helper(features: torch.Tensor) -> None: ...

    namespace = SimpleNamespace(doubled=doubled, needy=needy, helper=helper, __all__=["doubled", "needy", "helper"])
    found, refused = discover(functions_of(namespace))
    assert list(found) == ["doubled"]
    assert list(refused) == ["needy"]
    assert "wish" in refused["needy"]


def test_a_function_of_ones_own_is_timed_and_said_not_to_be_checked(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "my_operators.py").write_text(
        "from detpool import ops\n"
        "def scaled(features, rois, output_size, spatial_scale, factor=2.0):\n"
        "    return factor * ops.roi_align(features, rois, output_size, spatial_scale)\n"
        "def with_backends(features, rois, output_size, spatial_scale, backend=None):\n"
        "    return ops.roi_align(features, rois, output_size, spatial_scale, backend=backend)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    features, boxes = torch.randn(1, 4, 6, 6), torch.tensor([[0.0, 1.2, 1.1, 4.7, 4.9]])
    bound = examine("my_operators.scaled:factor=-3", functions_of()).bind(2, "reference")
    expected = -3 * ops.roi_align(features, boxes, 2)
    torch.testing.assert_close(bound(features, boxes, output_size=(2, 2), spatial_scale=1.0), expected)

    names = ["my_operators.scaled", "my_operators.with_backends"]
    arguments = ["--quick", "--workloads", "c4", "--directions", "forward", "--layouts", "contiguous", "--peers"]
    assert bench_ops.main([*arguments, "torchvision", "--operators", *names, "--output", str(tmp_path / "out")]) == 0
    rows = {
        (row["operator"], row["implementation"]): row for row in csv.DictReader((tmp_path / "out" / "bench.csv").open())
    }
    own, checked = rows["my_operators.scaled", "own"], rows["my_operators.with_backends", "detpool cpu"]
    assert (own["status"], checked["status"]) == ("timed", "timed")
    assert own["note"] == "not checked: it has no argument 'backend', and so no reference"
    assert own["error"] == ""
    assert float(checked["error"]) < 1e-5
    assert own["baseline"] == "detpool cpu roi_align"
    assert "not checked" in " ".join(capsys.readouterr().out.split())


def test_only_bins_that_must_be_moved_are_moved() -> None:
    features, boxes = torch.randn(1, 4, 6, 6), torch.tensor([[0.0, 1.2, 1.1, 4.7, 4.9]])
    got = examine("pool", functions_of()).bind(2, None)(features, boxes, output_size=(2, 2), spatial_scale=1.0)
    assert torch.equal(got, ops.pool(features, boxes, 2, sampling_ratio=2))
    assert examine("deform_roi_pool", functions_of()).needs_offsets


@pytest.mark.parametrize(("workload", "direction"), [("c4", FORWARD), ("fpn", BOX_BACKWARD)])
def test_expected_results_are_those_of_the_checked_channels(direction: str, workload: str) -> None:
    case = quick_case("pr_roi_pool", direction, workload)
    rows = run_case(case, quick_settings({}))
    assert rows[0].status == "timed"
    assert case.checked_channels.tolist() == [0, 7]
    expected = expected_results(case)
    rois = sum(len(boxes) for boxes in case.workload.boxes)
    assert expected["output"][0].shape == (rois, 2, 7, 7)
    if direction == BOX_BACKWARD:
        assert len(expected["box gradient"]) == (2 if workload == "fpn" else 1)


def test_workloads_are_the_same_every_time() -> None:
    for make in WORKLOADS.values():
        first, second = make(True), make(True)
        for a, b in zip((*first.features, *first.boxes), (*second.features, *second.boxes), strict=True):
            assert torch.equal(a, b)
        assert (first.rois[:, 1:3] >= 0).all()
        assert (first.rois[:, 3:] <= torch.tensor(first.image_size[::-1])).all()


def cells_under(workload: Workload) -> set[tuple[int, int, int, int]]:
    """Image, row, column and group of channels of each cell that lies under a bin of that group, one by one."""
    rows, columns = workload.output_size if workload.position_sensitive else (1, 1)
    stride = workload.strides[0]
    _, _, height, width = workload.features[0].shape
    cells = set()
    for image, x1, y1, x2, y2 in workload.rois.tolist():
        for i in range(rows):
            for j in range(columns):
                top, bottom = y1 + i * (y2 - y1) / rows, y1 + (i + 1) * (y2 - y1) / rows
                left, right = x1 + j * (x2 - x1) / columns, x1 + (j + 1) * (x2 - x1) / columns
                for y in range(max(math.floor(top / stride), 0), min(math.ceil(bottom / stride), height)):
                    for x in range(max(math.floor(left / stride), 0), min(math.ceil(right / stride), width)):
                        cells.add((int(image), y, x, i * columns + j))
    return cells


def test_bytes() -> None:
    shape: dict[str, Any] = {"channels": 3, "rois": 5, "sides": (20, 60), "image_size": (96, 128)}
    for position_sensitive in (False, True):
        workload = build("w", **shape, output_size=(2, 3), position_sensitive=position_sensitive)
        touched, output, features = 3 * len(cells_under(workload)), 5 * 3 * 6, workload.features[0].numel()
        for backward, boxes, numbers in (
            (False, False, touched + output),
            (True, False, touched + 2 * output + features),
            (True, True, 2 * touched + 2 * output + features),
        ):
            moved = bytes_moved(workload, torch.float32, backward=backward, box_gradients=boxes)
            assert moved == 4 * numbers


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ("--workloads c5", "--workloads: unknown name 'c5'; did you mean 'c4'?"),
        ("--operators roi_aling", "unknown operator 'roi_aling'; did you mean 'roi_align'?"),
        ("--operators roi_align:reductoin=max", "roi_align has no argument 'reductoin'; did you mean 'reduction'?"),
        ("--operators roi_align:max", "arguments of roi_align are written key=value, got 'max'"),
        ("--operators roi_align:aligned=1", "aligned of roi_align must be True or False, got '1'"),
        ("--operators roi_align:reduction=median", "reduction must be one of 'mean', 'max', 'sum', got 'median'"),
        ("--operator roi_align", "unknown argument '--operator'; did you mean '--operators'?"),
        ("--import no_such_module", "--import no_such_module: there is no module 'no_such_module'; Python finds"),
        ("--operators no_such_module.f", "no_such_module.f: there is no module 'no_such_module'; Python finds"),
        ("--operators detpool.ops.levels.levels", "detpool.ops.levels has no 'levels'; did you mean 'levels_of'?"),
        ("--operators detpool.ops.RoIAlign", "detpool.ops.RoIAlign must be a function of (input, boxes, output_size,"),
        ("--threads 0", "--threads: must be a positive whole number, got '0'"),
        ("--rounds many", "--rounds: must be a positive whole number, got 'many'"),
        ("--budget many", "must be a positive number, got 'many'"),
        ("--sampling-ratio x", "must be 0 or a positive whole number, got 'x'"),
        ("--scaling --workloads c4", "--scaling has workloads of its own"),
        ("--scaling --threads 1 2", "--threads: --scaling takes one"),
    ):
        with pytest.raises(SystemExit) as stop:
            bench_ops.main(options.split())
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_an_operator_without_a_workload_is_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--quick --workloads c4 --operators ps_roi_pool"
    assert bench_ops.main([*options.split(), "--output", str(tmp_path)]) == 0
    assert "ps_roi_pool: no workload of c4 has position-sensitive channels" in capsys.readouterr().out


def test_a_pyramid_is_pooled_at_once() -> None:
    """A wrapper around an operator would be called level by level: what is measured is what users call."""
    assert all(ops.pools_pyramids(examine(name, functions_of()).bind(2, "cpu")) for name in ("roi_align", "roi_pool"))
