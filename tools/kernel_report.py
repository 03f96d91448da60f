#!/usr/bin/env python
"""What became of the Triton kernels: compiles every specialisation ahead of time and counts; needs no GPU.

    python tools/kernel_report.py                                     # everything, into results/kernels
    python tools/kernel_report.py --targets sm_90 --dtypes float32    # a part of it

Every kernel is compiled as the operators launch it, for each target. Registers, spills, shared memory, the instructions
of the innermost loop, the widths of loads and stores, and how many operations on blocks of memory stand in how deep a
loop, go to `kernels.csv`; a summary, and the model of cost, to `README.md` beside it. Ends with status 1 if a kernel
spills registers, or if the forward of an operator with shared channels does not load channels_last features 128 bits at
a time.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench.workloads import WORKLOADS
from kernels.compiled import TARGETS, Facts, compile_launch
from kernels.cost import GPUS, costs
from kernels.launches import DTYPES, LAYOUTS, LINEAR, Launch, every_launch
from rich.progress import track

from detpool.files import write_text_atomically

Result = tuple[str, Launch, Facts]

WIDE = 128
"""Bits of the widest load of all targets."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
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
    options.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(options.output / "kernels.csv", _csv(results))
    command = " ".join(["python tools/kernel_report.py", *(sys.argv[1:] if argv is None else argv)])
    write_text_atomically(options.output / "README.md", _summary(results, command))
    wrong = [line for result in results for line in complaints(*result)]
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(results)} kernels compiled, {len(wrong)} complaints; results in {options.output}")
    return 1 if wrong else 0


def complaints(target: str, launched: Launch, facts: Facts) -> list[str]:
    """What must not be."""
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


def _csv(results: Sequence[Result]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(Facts)]
    writer.writerow(["target", "kernel", "operator", "dtype", "layout", "num_warps", *fields])
    for target, launched, facts in results:
        where = (target, launched.kernel, launched.operator, launched.dtype, launched.layout, launched.num_warps)
        writer.writerow([*where, *dataclasses.astuple(facts)])
    return text.getvalue()


def _summary(results: Sequence[Result], command: str) -> str:
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        f"`{command}`: {len(results)} specialisations, of which {sum(bool(f.spilled) for _, _, f in results)} spill "
        "registers; all of them in `kernels.csv`. No GPU took part.",
        "",
        "Per target, over all operators, types and layouts: the most registers a thread and bytes of shared memory a",
        "program, and how wide the forwards of shared channels load channels_last features.",
        "",
        "| target | specialisations | registers | spilled | shared memory | feature loads of the fast path |",
        "|---|---|---|---|---|---|",
    ]
    for target in dict.fromkeys(target for target, _, _ in results):
        mine = [(launched, facts) for name, launched, facts in results if name == target]
        fast = [facts.load_bits for launched, facts in mine if is_fast_forward(launched)]
        most = [max(getattr(facts, name) for _, facts in mine) for name in ("registers", "spilled", "shared")]
        width = f"{min(fast)} bits" if fast else ""
        lines.append(f"| {target} | {len(mine)} | {' | '.join(map(str, most))} | {width} |")
    lines += ["", *_kernel_table(results), "", *_cost_table()]
    return "\n".join(lines) + "\n"


def _kernel_table(results: Sequence[Result]) -> list[str]:
    """One target, type and layout in full."""
    wanted = [r for r in results if (r[1].dtype, r[1].layout) == (results[0][1].dtype, results[0][1].layout)]
    target = wanted[0][0]
    lines = [
        f"On {target}, {wanted[0][1].dtype}, {wanted[0][1].layout}. Loads and stores are those of blocks of channels,",
        "by the depth of the loops around them: a forward has its one load under the loops over the taps of both axes,",
        "and its one store under none; so have the deterministic gradients, `transpose_gather` and `scatter_gather`.",
        "",
        "| kernel | operator | registers | instructions of the inner loop | widest load | block loads | block stores |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, launched, facts in wanted:
        if name == target:
            lines.append(
                f"| {launched.kernel} | {launched.operator} | {facts.registers} | {facts.loop or 'unrolled'} "
                f"| {facts.load_bits} | {facts.loads} | {facts.stores} |"
            )
    return lines


def _cost_table() -> list[str]:
    columns = ["workload", "operator", "direction", "GFLOP", "MB", "requested MB", *(f"{gpu}, us" for gpu in GPUS)]
    columns.append("measured")
    lines = [
        "## What the workloads cost at least",
        "",
        "float32; operations are products and sums of taps; MB count each number once, requested MB what",
        "the kernels load, store and (backward) add atomically, from whatever cache. The times are what published",
        "bandwidth and arithmetic rate allow, whichever is longer; no kernel has been timed on a GPU.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for make in WORKLOADS.values():
        for cost in costs(make(False)):
            amounts = f"{cost.operations / 1e9:.2f} | {cost.bytes / 1e6:.0f} | {cost.requested / 1e6:.0f}"
            times = " | ".join(f"{1e6 * cost.seconds(gpu):.0f}" for gpu in GPUS)
            lines.append(
                f"| {cost.workload} | {cost.operator} | {cost.direction} | {amounts} | {times} | not measured |"
            )
    return lines


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of features; default: all")
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="of features; default: all"
    )
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="default: one a core")
    parser.add_argument("--output", type=Path, default=Path("results/kernels"), help="folder; default: results/kernels")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
