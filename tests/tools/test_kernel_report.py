"""The kernels compile ahead of time for every target, without spills, and load as wide as they should."""

import csv
import dataclasses

import kernel_report
import pytest
import torch
from bench.workloads import WORKLOADS
from kernel_report import is_fast_forward
from kernels import cost, launches
from kernels.compiled import Facts, compile_launch
from kernels.cost import Cost, close_share, read_rates
from kernels.launches import LINEAR, every_launch

SOME = ("sm_90", "gfx942")
FACTS = Facts(
    registers=32,
    spilled=0,
    shared=0,
    loop=10,
    load_bits=128,
    store_bits=128,
    loads="1 at depth 2",
    stores="1 at depth 0",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict[str, str]]:
    """The report of the layout that the fast path is about, a GPU of each maker; `make test-slow` has all of them."""
    folder = tmp_path_factory.mktemp("report")
    options = ["--targets", *SOME, "--dtypes", "float32", "--layouts", "channels_last", "--processes", "1"]
    assert kernel_report.main([*options, "--output", str(folder)]) == 0
    assert "not measured" in (folder / "README.md").read_text()
    with open(folder / "kernels.csv") as file:
        return list(csv.DictReader(file))


def test_every_kernel_is_compiled_for_every_target(rows) -> None:
    kernels = {row["kernel"] for row in rows}
    assert kernels == {
        "layout.transpose",
        *(f"weighted_sum.{name}" for name in ("forward", "roi_grads")),
        *(f"transposed_sum.transpose_{name}" for name in ("atomic", "atomic_tabulated", "gather")),
        *(f"transposed_sum.{name}" for name in ("extents", "tabulate")),
        *(f"window_max.{name}" for name in ("forward", "scatter_atomic", "scatter_gather", "extents")),
    }
    for target in SOME:
        assert {row["kernel"] for row in rows if row["target"] == target} == kernels


def test_each_tap_is_read_once_and_each_result_written_once(rows) -> None:
    for row in rows:
        if row["kernel"] == "weighted_sum.forward":
            adaptive = LINEAR[row["operator"]].ratio <= 0
            assert row["stores"] == "1 at depth 1", row  # in the loop over the bins of a program
            assert not adaptive or row["loads"] == "1 at depth 3", row
        if row["kernel"] in ("transposed_sum.transpose_gather", "window_max.scatter_gather"):
            assert row["stores"] == "1 at depth 0", row


def test_numbers_change_threads_where_maps_are_copied(rows) -> None:
    """Through shared memory, or each would be read or written where its neighbors are not."""
    shared = [int(row["shared"]) for row in rows if (row["kernel"], row["target"]) == ("layout.transpose", "sm_90")]
    assert shared == [32 * 32 * 4] * 2  # of features and of gradients


@pytest.mark.parametrize(("dtype", "most"), [("float32", 600), ("float16", 400)])
def test_instructions_of_a_bin(dtype: str, most: int) -> None:
    """On c4; with fewer, memory and not the instructions limits the forward."""
    close, apart = kernel_report.instructions_per_bin(dtype)
    share = close_share(WORKLOADS["c4"](False))
    assert 0.5 < share < 1
    assert share * close + (1 - share) * apart <= most
    # no less than the loads, conversions and sums themselves, or they are not what is counted
    sums = 256 // 32
    assert close >= 9 * sums
    assert apart >= 16 * sums


def test_costs_follow_measured_rates(tmp_path) -> None:
    path = tmp_path / "bandwidth.csv"
    path.write_text("choice,main_ms,note\ncopy beyond L2,1,3000 GB/s\ncopy within L2,1,6000 GB/s\nvectors,1,9 GB/s\n")
    row = Cost("c4", "roi_align", "forward", operations=10**12, bytes=3 * 10**9, l2=12 * 10**9, instructions=1e9)
    assert row.limits(read_rates(path)) == pytest.approx({"memory": 1e-3, "L2": 2e-3})
    path.write_text("choice,main_ms,note\ncopy beyond L2,,no kernel\n")
    with pytest.raises(ValueError, match="no rates of copies"):
        read_rates(path)


@pytest.mark.parametrize("copied", [False, True])
def test_costs_of_position_sensitive_maps_count_sectors(copied: bool, monkeypatch) -> None:
    monkeypatch.setattr(cost, "pays_to_copy", lambda *args: copied)
    workload = WORKLOADS["rfcn"](True)
    _, channels, height, width = workload.features[0].shape
    forward, backward = (found for found in cost.costs(workload) if found.operator == "ps_roi_align")
    taps = backward.operations / (2 * workload.output_channels)
    pooled = 4 * workload.output_channels * 49 * len(workload.rois)
    copy = 2 * 4 * workload.features[0].numel() if copied else 0
    # where the three channels of each group of each cell lie, in numbers: neighbors, or 49 apart
    if copied:
        places = torch.arange(channels * height * width).view(-1, 3)
    else:
        places = torch.arange(channels * height * width).view(-1, 3, 49).transpose(1, 2).reshape(-1, 3)
    sectors = float(torch.tensor([len(row.unique()) for row in places // 8]).float().mean())
    assert backward.l2 - pooled - copy == pytest.approx(taps * sectors * 2 * 32, rel=0.01)
    assert forward.l2 < backward.l2  # cells, which several taps of a bin share, and no additions


def test_sizes_are_not_compiled_for(monkeypatch) -> None:
    """Four numbers of images and RoIs and five sizes of maps run the same code, with few RoIs another."""
    compiled = {}
    for images in (1, 2, 3, 16):
        for height, width in ((50, 76), (25, 38), (64, 64), (100, 1), (200, 304)):
            sizes = {"IMAGES": images, "HEIGHT": height, "WIDTH": width, "ROIS": 300 * images}
            for name, value in (sizes | {"ROIS": 16} if images == 3 else sizes).items():
                monkeypatch.setattr(launches, name, value)
            for launched in every_launch(32, ["float32"], ["channels_last"]):
                if launched.operator == "roi_align":
                    compiled.setdefault(launched.kernel, set()).add(launched.key)
    assert {kernel: len(keys) for kernel, keys in compiled.items() if len(keys) > 1} == {"weighted_sum.forward": 2}


def test_sizes_are_hardly_compiled_for_where_maps_are_copied(monkeypatch) -> None:
    """A copy for each direction, and another where the cells of a contiguous map are a multiple of sixteen."""
    compiled = set()
    for images, height, width in ((1, 50, 76), (2, 50, 76), (3, 64, 64), (2, 100, 152), (2, 48, 81), (2, 200, 304)):
        for name, value in {"IMAGES": images, "HEIGHT": height, "WIDTH": width, "ROIS": 8000 * images}.items():
            monkeypatch.setattr(launches, name, value)
        for launched in every_launch(32, ["float32"], ["contiguous"]):
            if launched.kernel == "layout.transpose" and launched.operator == "roi_align":
                compiled.add(launched.key)
    assert len(compiled) == 2 * 2


@pytest.mark.slow
def test_all_specialisations(tmp_path) -> None:
    assert kernel_report.main(["--output", str(tmp_path)]) == 0


def test_what_is_complained_about() -> None:
    forward, *others = every_launch(32, ["float32"], ["channels_last"])
    assert forward.kernel == "weighted_sum.forward"
    assert kernel_report.complaints("sm_90", forward, FACTS) == []
    (spills,) = kernel_report.complaints("sm_90", forward, dataclasses.replace(FACTS, spilled=8))
    assert "weighted_sum.forward of roi_align, float32 channels_last, on sm_90: spills 8" in spills
    (narrow,) = kernel_report.complaints("sm_90", forward, dataclasses.replace(FACTS, load_bits=64))
    assert "64 bits at a time, not 128" in narrow
    assert all(
        kernel_report.complaints("sm_90", other, dataclasses.replace(FACTS, load_bits=64)) == []
        for other in others
        if not is_fast_forward(other)
    )


def test_features_that_are_not_aligned_are_not_loaded_as_if_they_were(monkeypatch) -> None:
    """A count of channels that is no multiple of four: the report must see the narrow loads."""
    monkeypatch.setattr(launches, "CHANNELS", 255)
    forwards = [launched for launched in every_launch(32, ["float32"], ["channels_last"]) if is_fast_forward(launched)]
    assert len(forwards) >= 5
    assert compile_launch(forwards[0], "sm_90").load_bits == 32


@pytest.mark.parametrize(("dtype", "channels"), [("float16", 40), ("float32", 36)])
def test_odd_sizes_are_loaded_as_wide(monkeypatch, dtype: str, channels: int) -> None:
    """No stride is a multiple of sixteen here, which is all that Triton would find out by itself."""
    for name, value in (("CHANNELS", channels), ("HEIGHT", 7), ("WIDTH", 5)):
        monkeypatch.setattr(launches, name, value)
    forwards = [launched for launched in every_launch(32, [dtype], ["channels_last"]) if is_fast_forward(launched)]
    assert len(forwards) >= 5
    for launched in forwards:
        assert compile_launch(launched, "sm_90").load_bits == 128, launched.operator


def test_the_rule_of_the_documentation_compiles(own_package) -> None:
    for launched in every_launch(32, ["float32"], ["channels_last"]):
        if launched.operator == "roi_align":
            constants = dict(launched.constants) | {"RULE": "my_package.gaussian_rule:gaussian"}
            mine = dataclasses.replace(launched, constants=tuple(constants.items()))
            assert compile_launch(mine, "sm_90").spilled == 0
