"""Measures the speed of the operators of `detpool.ops` in comparison with other implementations.

    python tools/bench_ops.py                                        # all operators on all workloads
    python tools/bench_ops.py --workloads c4 --operators roi_align pr_roi_pool --box-gradients
    python tools/bench_ops.py --operators my_package.my_operator     # one of your own
    python tools/bench_ops.py --scaling                              # time against RoIs, channels, bins and their area
    python tools/bench_ops.py --device cuda                          # the Triton kernels
    python tools/bench_ops.py --quick                                # does it run?

Whole public calls are timed in one process, in turns with torchvision and, forward only and with the extra `bench`,
OpenVINO and ONNX Runtime, each with the layout that suits it and the same number of threads. On a GPU, the others are
torchvision and our reference backend under torch.compile, and calls are timed from an idle GPU until it is idle again.
Implementations that differ from the reference backend by more than the stated tolerance are reported and not timed.
Operators that torchvision lacks are compared with our roi_align or our ps_roi_pool. The results of your own operators
are not checked, unless they have an argument `backend`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import torch
from bench import output, plots
from bench.contenders import BACKWARD, BOX_BACKWARD, DTYPES, FORWARD, LAYOUTS, Case
from bench.operators import Operator, discover, examine, functions_of
from bench.peers import DEFAULTS, PEERS
from bench.run import OWN, Row, Settings, run_case
from bench.workloads import WORKLOADS, Workload, points
from command_line import Parser, import_all, natural, positive_int

from detpool.errors import ConfigError
from detpool.ops.backends import ORDER as BACKENDS

ROOT = Path(__file__).resolve().parents[1]
QUICK_ROUNDS = 3
QUIET_LOAD = 0.5
"""Load average above which other programs are assumed to run."""

Operators = Mapping[str, Operator]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a result of detpool is wrong."""
    options, operators, refused = _parse(argv)
    load = os.getloadavg()[0]
    if load > QUIET_LOAD and not options.quick:
        print(f"load average {load:.1f}: other work on this machine will show in the times")
    for name, reason in (refused | _unfit(options, operators.values())).items():
        print(f"not measured: {name}: {reason}")

    record = options.output / ("scaling.json" if options.scaling else "bench.json")
    with output.recorded(record, "tools/bench_ops.py", argv, options):
        rows = (_scaling if options.scaling else _workloads)(options, operators.values())
    print(f"results in {options.output}")

    ours = [row for row in rows if row.implementation.startswith("detpool") or row.implementation == OWN]
    wrong = [row for row in ours if row.status in ("disagrees", "failed")]
    for row in wrong:
        what = f"{row.implementation} {row.layout} {row.operator} {row.direction} on {row.workload}"
        print(f"error: {what} {row.status}: {row.note}")
    return 1 if wrong else 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Operators, dict[str, str]]:
    """Returns the options, the operators to measure by name, and the reasons why others cannot be measured by name."""
    parser = Parser(__doc__)
    add, add_names = parser.add_argument, parser.add_names
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add_names("--workloads", WORKLOADS, "default: ALL")
    text = (
        "functions of detpool.ops with arguments, such as pool:sampling=integral,reduction=max, or of yours, such as "
    )
    text += "my_package.my_operator; default: all of detpool.ops, with --scaling without the position-sensitive ones"
    add("--operators", nargs="+", metavar="NAME[:KEY=VALUE,...]", help=text)
    parser.add_imports()
    add_names("--directions", (FORWARD, BACKWARD), "default: ALL", default=[FORWARD, BACKWARD])
    add("--box-gradients", action="store_true", help="also forward+backward with gradients of boxes")
    add_names("--layouts", LAYOUTS, "of our features; default: ALL; with --scaling channels_last")
    add_names("--dtypes", DTYPES, "of ALL; default: float32", default=["float32"])
    threads = [torch.get_num_threads()]
    text = "ours and the peers'; default: as PyTorch"
    add("--threads", nargs="+", type=positive_int, default=threads, metavar="N", help=text)
    add_names("--backend", BACKENDS, "ours, of ALL; default: cpu, on a GPU triton")
    add_names("--peers", PEERS, "of ALL, may be empty; default: the device's; with --scaling torchvision", "*")
    text = "points per bin along each axis, for operators that sample points; 0: as many as it has cells; default: 2"
    add("--sampling-ratio", type=natural, default=2, metavar="N", help=text)
    parser.add_timing(rounds=30, budget=15)
    add("--scaling", action="store_true", help="vary RoIs, channels, bins and their area instead of the workload")
    add("--quick", action="store_true", help="small inputs and three rounds: shows that it runs, not how fast")
    options = parser.parse_args(argv)

    if options.scaling:
        if options.workloads:
            parser.error("--workloads: --scaling has workloads of its own")
        for option in ("dtypes", "threads"):
            if len(getattr(options, option)) > 1:
                parser.error(f"--{option}: --scaling takes one")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA or ROCm device here")
    try:
        import_all(options.imports)
    except ConfigError as error:
        parser.error(str(error))
    functions = functions_of()
    try:
        asked = options.operators and {name: examine(name, functions) for name in options.operators}
    except ValueError as error:
        parser.error(f"--operators: {error}")
    operators, refused = (asked, {}) if asked else discover(functions)
    if options.scaling:
        reason = "position-sensitive: its features would grow with the bins"
        refused |= {name: reason for name, operator in operators.items() if operator.position_sensitive}
        operators = {name: operator for name, operator in operators.items() if not operator.position_sensitive}
    defaults = {
        "workloads": list(WORKLOADS),
        "operators": list(operators),
        "layouts": ["channels_last"] if options.scaling else list(LAYOUTS),
        "backend": ["cpu" if options.device == "cpu" else "triton"],
        "peers": ["torchvision"] if options.scaling else DEFAULTS[options.device],
        "output": ROOT / "logs" / "bench_ops" / f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}",
    }
    for option, value in defaults.items():
        if getattr(options, option) is None:
            setattr(options, option, value)
    if options.quick:
        options.rounds = min(options.rounds, QUICK_ROUNDS)
    return options, operators, refused


def _unfit(options: argparse.Namespace, operators: Iterable[Operator]) -> dict[str, str]:
    """Reasons why operators have fewer rows than others, by operator."""
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
        Case(workload, operator, direction, DTYPES[dtype], threads, options.sampling_ratio, options.device)
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


def _workloads(options: argparse.Namespace, operators: Collection[Operator]) -> list[Row]:
    settings = _settings(options)
    rows: list[Row] = []
    for name in options.workloads:
        cases = _cases(options, operators, WORKLOADS[name](options.quick))
        found = [row for case in output.progress(cases, name) for row in run_case(case, settings)]
        output.print_rows(found)
        rows += found
    output.write_csv(options.output / "bench.csv", list(map(dataclasses.asdict, rows)))
    if any(row.status == "timed" for row in rows):
        plots.plot_times(options.output / "bench.png", rows)
    return rows


def _scaling(options: argparse.Namespace, operators: Collection[Operator]) -> list[Row]:
    settings = _settings(options)
    found: list[tuple[float, Row]] = []
    for value, workload in output.progress(list(points(options.quick)), "scaling"):
        found += [(value, row) for case in _cases(options, operators, workload) for row in run_case(case, settings)]
    rows = [row for _, row in found]
    output.print_scaling(found)
    output.write_csv(options.output / "scaling.csv", [{"value": v, **dataclasses.asdict(row)} for v, row in found])
    for direction in dict.fromkeys(row.direction for row in rows if row.status == "timed"):
        name = direction.replace("+", "_")
        plots.plot_scaling(options.output / f"scaling_{name}.png", found, direction)
    return rows


if __name__ == "__main__":
    sys.exit(main())
