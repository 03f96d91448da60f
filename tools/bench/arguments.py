"""The command line of `tools/bench_ops.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path

import torch
from command_line import Parser, natural, positive_int

from detpool.ops.backends import ORDER as BACKENDS

from .contenders import BACKWARD, DTYPES, FORWARD, LAYOUTS
from .operators import Operator, discover, examine, functions_of
from .peers import DEFAULTS, PEERS
from .workloads import WORKLOADS

QUICK_ROUNDS = 3


def parse(
    description: str, folder: Path, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, Operator], dict[str, str]]:
    """Read and check the command line.

    Args:
        description: The text above the help.
        folder: Where results go by default, into a new folder.
        argv: The arguments, None for those of the process.

    Returns:
        A value for every option; the operators to measure by name; and those that cannot be, with the reason.
    """
    parser = Parser(description)
    add, add_names = parser.add_argument, parser.add_names
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add_names("--workloads", WORKLOADS, "default: ALL")
    text = "functions of detpool.ops with arguments, such as pool:sampling=integral,reduction=max; default: all, with "
    text += "--scaling without the position-sensitive ones"
    add("--operators", nargs="+", metavar="NAME[:KEY=VALUE,...]", help=text)
    text = "which registers sampling or reductions, wherever Python finds it"
    add("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help=text)
    add_names("--directions", (FORWARD, BACKWARD), "default: ALL")
    add("--box-gradients", action="store_true", help="also forward+backward with gradients of boxes")
    add_names("--layouts", LAYOUTS, "of our features; default: ALL; with --scaling channels_last")
    add_names("--dtypes", DTYPES, "of ALL; default: float32", default=["float32"])
    add("--threads", nargs="+", type=positive_int, metavar="N", help="ours and the peers'; default: as PyTorch")
    add_names("--backend", BACKENDS, "ours, of ALL; default: cpu, on a GPU triton")
    add_names("--peers", PEERS, "of ALL, may be empty; default: the device's; with --scaling torchvision", "*")
    text = "points per bin along each axis, for operators that sample points; 0: as many as it has cells; default: 2"
    add("--sampling-ratio", type=natural, default=2, metavar="N", help=text)
    parser.add_timing(rounds=30, budget=15)
    add("--scaling", action="store_true", help="vary RoIs, channels, bins and their area instead of the workload")
    add("--quick", action="store_true", help="small inputs and three rounds: shows that it runs, not how fast")
    arguments = parser.parse_args(argv)

    if arguments.scaling:
        if arguments.workloads:
            parser.error("--workloads: --scaling has workloads of its own")
        for option in ("dtypes", "threads"):
            if len(getattr(arguments, option) or ()) > 1:
                parser.error(f"--{option}: --scaling takes one")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA or ROCm device here")
    operators, refused = _operators(parser, arguments)
    defaults = {
        "workloads": list(WORKLOADS),
        "operators": list(operators),
        "directions": [FORWARD, BACKWARD],
        "layouts": ["channels_last"] if arguments.scaling else list(LAYOUTS),
        "threads": [torch.get_num_threads()],
        "backend": ["cpu" if arguments.device == "cpu" else "triton"],
        "peers": ["torchvision"] if arguments.scaling else DEFAULTS[arguments.device],
        "output": folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}",
    }
    for option, value in defaults.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, QUICK_ROUNDS)
    return arguments, operators, refused


def _operators(parser: Parser, arguments: argparse.Namespace) -> tuple[dict[str, Operator], dict[str, str]]:
    """The operators that were asked for, or all that there are, and why some of those are left out."""
    for module in arguments.imports:
        try:
            import_module(module)
        except ImportError as error:
            parser.error(f"--import: {error}; Python finds modules of this folder with PYTHONPATH=.")
    functions = functions_of()
    if arguments.operators is None:
        operators, refused = discover(functions)
    else:
        try:
            operators, refused = {name: examine(name, functions) for name in arguments.operators}, {}
        except ValueError as error:
            parser.error(f"--operators: {error}")
    if arguments.scaling:
        for name in [name for name, operator in operators.items() if operator.position_sensitive]:
            del operators[name]
            refused[name] = "position-sensitive: its features would grow with the bins"
    return operators, refused
