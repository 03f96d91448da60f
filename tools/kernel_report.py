#!/usr/bin/env python
"""Reports on the Triton kernels: compiles every specialization ahead of time and inspects the code; needs no GPU.

    python tools/kernel_report.py                                     # everything, into results/kernels
    python tools/kernel_report.py --targets sm_90 --dtypes float32    # a part of it

Every kernel is compiled for each target as the operators launch it. Registers, spills, shared memory, instructions of
the innermost loop, widths of loads and stores, and the number of operations on memory blocks by loop depth are written
to `kernels.csv`; a summary and the cost model are written to `README.md` next to it. The exit status is 1 if a kernel
spills registers, or if the forward of an operator with shared channels does not load channels_last features 128 bits at
a time.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.output import write_csv
from bench.workloads import WORKLOADS
from command_line import Parser, positive_int
from kernels.compiled import TARGETS, Facts, compile_kernel, compile_launch
from kernels.cost import GPUS, Gpu, close_share, costs, read_rates
from kernels.executed import count_forward
from kernels.launches import CHANNELS, DTYPES, LAYOUTS, LINEAR, Launch, every_launch
from pages import head, line
from rich.progress import track

from detpool.files import write_text_atomically

Result = tuple[str, Launch, Facts]

WIDTHS = ("widest load", "block loads", "block stores")
WIDE = 128
"""Width of the widest load of all targets, in bits."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_names("--targets", TARGETS, "default: ALL", default=list(TARGETS))
    parser.add_names("--dtypes", DTYPES, "of features; default: ALL", default=list(DTYPES))
    parser.add_names("--layouts", LAYOUTS, "of features; default: ALL", default=list(LAYOUTS))
    add = parser.add_argument
    add(
        "--processes", type=positive_int, default=multiprocessing.cpu_count(), metavar="N", help="default: one per core"
    )
    add("--output", type=Path, default=Path("results/kernels"), metavar="FOLDER", help="default: results/kernels")
    text = "bandwidth.csv of tools/gpu_first.py: the model of cost has a column for that GPU too"
    add("--rates", type=Path, metavar="FILE", help=text)
    options = parser.parse_args(argv)
    gpus = dict(GPUS)
    if options.rates is not None:
        try:
            gpus[options.rates.parent.name] = read_rates(options.rates)
        except (OSError, ValueError) as error:
            parser.error(f"--rates: {error}")
    work = [
        (target, launched)
        for target in options.targets
        for launched in every_launch(TARGETS[target].warp_size, options.dtypes, options.layouts)
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        found = pool.imap(_facts, work, chunksize=4)
        results: list[Result] = [
            (target, launched, facts)
            for (target, launched), facts in zip(work, track(found, "compiling", total=len(work)), strict=True)
        ]
    write_csv(options.output / "kernels.csv", [_record(*result) for result in results])
    command = " ".join(["python tools/kernel_report.py", *(sys.argv[1:] if argv is None else argv)])
    write_text_atomically(options.output / "README.md", _summary(results, command, gpus))
    wrong = [complaint for result in results for complaint in complaints(*result)]
    for complaint in wrong:
        print(f"error: {complaint}", file=sys.stderr)
    print(f"{len(results)} kernels compiled, {len(wrong)} complaints; results in {options.output}")
    return 1 if wrong else 0


def complaints(target: str, launched: Launch, facts: Facts) -> list[str]:
    """Returns a sentence for each fault of a compiled kernel that makes the program fail."""
    name = f"{launched.kernel} of {launched.operator}, {launched.dtype} {launched.layout}, on {target}"
    found = []
    if facts.spilled:
        found.append(f"{name}: spills {facts.spilled}")
    if is_fast_forward(launched) and facts.load_bits < WIDE:
        found.append(f"{name}: loads features {facts.load_bits} bits at a time, not {WIDE}")
    return found


def is_fast_forward(launched: Launch) -> bool:
    """Whether a launch is the forward of shared channels on channels_last features."""
    shared = launched.operator == "roi_pool" or (
        launched.operator in LINEAR and LINEAR[launched.operator].groups == (1, 1)
    )
    return shared and launched.layout == "channels_last" and launched.kernel.endswith(".forward")


def _facts(work: tuple[str, Launch]) -> Facts:
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    target, launched = work
    return compile_launch(launched, target)


def _record(target: str, launched: Launch, facts: Facts) -> dict[str, object]:
    where = {name: getattr(launched, name) for name in ("kernel", "operator", "dtype", "layout", "num_warps")}
    return {"target": target, **where, **dataclasses.asdict(facts)}


def _summary(results: Sequence[Result], command: str, gpus: Mapping[str, Gpu]) -> str:
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        f"`{command}`: {len(results)} specialisations, of which {sum(bool(f.spilled) for _, _, f in results)} spill "
        "registers; all of them in `kernels.csv`. No GPU took part.",
        "",
        "Per target, over all operators, types and layouts: the most registers a thread and bytes of shared memory a",
        "program, and how wide the forwards of shared channels load channels_last features.",
        "",
        *head(["target", "specialisations", "registers", "spilled", "shared memory", "feature loads of the fast path"]),
    ]
    for target in dict.fromkeys(target for target, _, _ in results):
        mine = [(launched, facts) for name, launched, facts in results if name == target]
        fast = [facts.load_bits for launched, facts in mine if is_fast_forward(launched)]
        most = [max(getattr(facts, name) for _, facts in mine) for name in ("registers", "spilled", "shared")]
        width = f"{min(fast)} bits" if fast else ""
        lines.append(line([target, str(len(mine)), *map(str, most), width]))
    per_bin = {dtype: instructions_per_bin(dtype) for dtype in ("float32", "float16")}
    lines += ["", *_kernel_table(results), "", *_instruction_lines(per_bin), "", *_cost_table(per_bin["float32"], gpus)]
    return "\n".join(lines) + "\n"


def _kernel_table(results: Sequence[Result]) -> list[str]:
    """Returns the lines of the table for one target, dtype and layout."""
    wanted = [r for r in results if (r[1].dtype, r[1].layout) == (results[0][1].dtype, results[0][1].layout)]
    target = wanted[0][0]
    lines = [
        f"On {target}, {wanted[0][1].dtype}, {wanted[0][1].layout}. Loads and stores are those of blocks of channels,",
        "by the depth of the loops around them: a forward's loops are over the bins of a program and the taps of both",
        "axes (unrolled where bins have a known number of points), with one store for each bin; the deterministic",
        "gradients, `transpose_gather` and `scatter_gather`, have their one store under no loop.",
        "",
        *head(["kernel", "operator", "registers", "instructions of the inner loop", *WIDTHS]),
    ]
    for name, launched, facts in wanted:
        if name == target:
            numbers = (facts.registers, facts.loop or "unrolled", facts.load_bits, facts.loads, facts.stores)
            lines.append(line([launched.kernel, launched.operator, *map(str, numbers)]))
    return lines


def instructions_per_bin(dtype: str, columns: int = 7) -> tuple[float, float]:
    """Counts the warp instructions for 256 channels of a bin of roi_align with 2 x 2 points, in code for sm_90.

    Args:
        dtype: dtype of the channels_last features.
        columns: number of bins per program.

    Returns:
        Instructions of a bin that reads 3 x 3 cells because its points are close enough to share cells, and of others.
    """
    (launched,) = (
        launched
        for launched in every_launch(32, [dtype], ["channels_last"])
        if launched.operator == "roi_align" and launched.kernel == "weighted_sum.forward"
    )
    counted = count_forward(compile_kernel(launched, "sm_90").asm["cubin"])
    assert dict(launched.constants)["BLOCK_C"] == CHANNELS, "a program computes all channels of its bins"
    loads = CHANNELS * DTYPES[dtype].itemsize // (16 * 32 * launched.num_warps)
    close, apart = (launched.num_warps * counted.per_bin(count * loads, columns) for count in (9, 16))
    return close, apart


def _instruction_lines(per_bin: dict[str, tuple[float, float]]) -> list[str]:
    share = close_share(WORKLOADS["c4"](False))
    lines = [
        "Instructions of warps for a bin of roi_align (sm_90, 256 channels of channels_last features, 2 x 2 points);",
        f"{share:.0%} of c4's bins have points so close that they share cells:",
        "",
        *head(["type", "bins of close points", "others", "mean of c4"]),
    ]
    for dtype, (close, apart) in per_bin.items():
        mean = share * close + (1 - share) * apart
        lines.append(line([dtype, *(f"{count:.0f}" for count in (close, apart, mean))]))
    return lines


def _cost_table(per_bin: tuple[float, float], gpus: Mapping[str, Gpu]) -> list[str]:
    columns = ["workload", "operator", "direction", "GFLOP", "memory, MB", "L2, MB", *(f"{gpu}, us" for gpu in gpus)]
    lines = [
        "## What the workloads cost at least",
        "",
        "float32; operations are products and sums of taps; memory counts each number once, L2 the cells that each RoI",
        "reads and its output; of position-sensitive maps the sectors of these cells, with an addition as a read and a",
        "write, and in both the copy of a map where there is one. The times are the longest that published rates of",
        "memory, L2, arithmetic and, where instructions are counted, issue allow, and which of them it is; no kernel",
        "has been timed on a GPU.",
        "",
        *head([*columns, "measured"]),
    ]
    for cost in [cost for make in WORKLOADS.values() for cost in costs(make(False), per_bin)]:
        amounts = [f"{cost.operations / 1e9:.2f}", f"{cost.bytes / 1e6:.0f}", f"{cost.l2 / 1e6:.0f}"]
        times = []
        for gpu in gpus.values():
            limits = cost.limits(gpu)
            longest = max(limits, key=lambda name: limits[name])
            times.append(f"{1e6 * limits[longest]:.0f} ({longest})")
        lines.append(line([cost.workload, cost.operator, cost.direction, *amounts, *times, "not measured"]))
    return lines


if __name__ == "__main__":
    sys.exit(main())
