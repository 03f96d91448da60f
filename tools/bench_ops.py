"""How fast are the operators of `detpool.ops`, and compared with whom?

    python tools/bench_ops.py                                        # all operators on all workloads
    python tools/bench_ops.py --workloads c4 --operators roi_align pr_roi_pool --box-gradients
    python tools/bench_ops.py --scaling                              # time against RoIs, channels, bins and their area
    python tools/bench_ops.py --device cuda                          # the Triton kernels
    python tools/bench_ops.py --quick                                # does it run?

Whole public calls are timed, in one process, in turns with torchvision and (forward, with the extra `bench`) OpenVINO
and ONNX Runtime, each with the layout that suits it and the same number of threads; on a GPU with torchvision and our
reference backend under torch.compile, from an idle GPU until it is idle again. Whoever differs from the reference
backend by more than the stated tolerance is reported and not timed. Operators that torchvision lacks are compared with
our roi_align, or our ps_roi_pool.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from bench import arguments, output, plots, scaling
from bench.contenders import BOX_BACKWARD, Case
from bench.operators import Operator, examine, functions_of
from bench.peers import PEERS
from bench.run import Row, Settings, run_case
from bench.workloads import WORKLOADS, Workload
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
QUIET_LOAD = 0.5
"""Load average above which other work is running."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a result of ours is wrong."""
    options, operators, refused = arguments.parse(__doc__ or "", ROOT / "logs" / "bench_ops", argv)
    out = output.console()
    load = os.getloadavg()[0]
    if load > QUIET_LOAD and not options.quick:
        out.print(f"load average {load:.1f}: other work on this machine will show in the times", style="red")
    for name, reason in (refused | _unfit(options, operators.values())).items():
        out.print(f"not measured: {name}: {reason}", style="yellow")

    record = options.output / ("scaling.json" if options.scaling else "bench.json")
    with output.recorded(record, "tools/bench_ops.py", argv, options):
        rows = (_scaling if options.scaling else _workloads)(options, operators.values(), out)
    out.print(f"results in {options.output}")

    wrong = [row for row in rows if row.status in ("disagrees", "failed") and row.implementation.startswith("detpool")]
    for row in wrong:
        what = f"{row.implementation} {row.layout} {row.operator} {row.direction} on {row.workload}"
        out.print(f"error: {what} {row.status}: {row.note}", style="red")
    return 1 if wrong else 0


def _unfit(options: argparse.Namespace, operators: Iterable[Operator]) -> dict[str, str]:
    """Why operators have fewer rows than others."""
    reasons = {}
    kinds = {WORKLOADS[name](True).position_sensitive for name in options.workloads}
    for operator in operators:
        if not options.scaling and operator.position_sensitive not in kinds:
            channels = "position-sensitive" if operator.position_sensitive else "shared"
            reasons[operator.name] = f"no workload of {', '.join(options.workloads)} has {channels} channels"
        if options.box_gradients and not operator.box_gradients:
            reasons.setdefault(f"{operator.name} {BOX_BACKWARD}", "boxes get no gradient, being rounded")
    return reasons


def _cases(options: argparse.Namespace, operators: Iterable[Operator], workload: Workload) -> list[Case]:
    directions = [*options.directions, *([BOX_BACKWARD] if options.box_gradients else [])]
    return [
        Case(workload, operator, direction, arguments.DTYPES[dtype], threads, options.sampling_ratio, options.device)
        for dtype in options.dtypes
        for threads in options.threads
        for operator in operators
        for direction in directions
        if operator.position_sensitive == workload.position_sensitive
        and (direction != BOX_BACKWARD or operator.box_gradients)
    ]


def _settings(options: argparse.Namespace) -> Settings:
    yardsticks = {False: examine("roi_align", functions_of()), True: examine("ps_roi_pool", functions_of())}
    peers = {name: PEERS[name] for name in options.peers}
    return Settings(options.backend, options.layouts, peers, yardsticks, options.rounds, options.budget)


def _workloads(options: argparse.Namespace, operators: Collection[Operator], out: Console) -> list[Row]:
    settings = _settings(options)
    rows: list[Row] = []
    for name in options.workloads:
        cases = _cases(options, operators, WORKLOADS[name](options.quick))
        found = [row for case in track(cases, name, console=out, transient=True) for row in run_case(case, settings)]
        output.print_rows(found, out)
        rows += found
    output.write_csv(options.output / "bench.csv", list(map(dataclasses.asdict, rows)))
    if any(row.status == "timed" for row in rows):
        plots.plot_times(options.output / "bench.png", rows)
    return rows


def _scaling(options: argparse.Namespace, operators: Collection[Operator], out: Console) -> list[Row]:
    settings = _settings(options)
    rows: list[Row] = []
    values: list[float] = []
    for point in track(list(scaling.points(options.quick)), "scaling", console=out, transient=True):
        found = [row for case in _cases(options, operators, point.workload) for row in run_case(case, settings)]
        rows += found
        values += [point.value] * len(found)
    output.print_scaling(rows, values, out)
    records = [{"value": value, **dataclasses.asdict(row)} for row, value in zip(rows, values, strict=True)]
    output.write_csv(options.output / "scaling.csv", records)
    for direction in dict.fromkeys(row.direction for row in rows if row.status == "timed"):
        name = direction.replace("+", "_")
        plots.plot_scaling(options.output / f"scaling_{name}.png", rows, values, direction)
    return rows


if __name__ == "__main__":
    sys.exit(main())
