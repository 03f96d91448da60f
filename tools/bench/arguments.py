"""The command line: every wrong word is answered with the nearest right one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import torch

from detpool.errors import did_you_mean
from detpool.ops.backends import ORDER as BACKENDS

from .contenders import BACKWARD, FORWARD, LAYOUTS
from .operators import Operator, discover, examine, functions_of
from .peers import DEFAULTS, PEERS
from .workloads import WORKLOADS

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
QUICK_ROUNDS = 3


def parse(
    description: str, folder: Path, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, Operator], dict[str, str]]:
    """Read and check the command line.

    Args:
        description: the text above the help.
        folder: where results go by default, into a new folder.
        argv: the arguments, None for those of the process.

    Returns:
        A value for every option; the operators to measure by name; and those that cannot be, with the reason.
    """
    parser = _Parser(description)
    directions = (FORWARD, BACKWARD)
    add = parser.add_argument

    def add_names(option: str, choices: Iterable[str], what: str, text: str, count: str = "+") -> None:
        known = list(choices)
        help_text = text.replace("ALL", ", ".join(known))
        add(option, nargs=count, type=_one_of(known, what), metavar="NAME", help=help_text)

    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add_names("--workloads", WORKLOADS, "workload", "default: ALL")
    add(
        "--operators",
        nargs="+",
        metavar="NAME[:KEY=VALUE,...]",
        help="functions of detpool.ops with arguments, such as pool:sampling=integral,reduction=max; default: all, "
        "with --scaling without the position-sensitive ones",
    )
    add(
        "--import",
        dest="imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="which registers sampling or reductions",
    )
    add_names("--directions", directions, "direction", "default: ALL")
    add("--box-gradients", action="store_true", help="also forward+backward with gradients of boxes")
    add_names("--layouts", LAYOUTS, "layout", "of our features; default: ALL; with --scaling channels_last")
    add_names("--dtypes", DTYPES, "dtype", "of ALL; default: float32")
    add("--threads", nargs="+", type=_positive_int, metavar="N", help="ours and the peers'; default: as PyTorch")
    add_names("--backend", BACKENDS, "backend", "ours, of ALL; default: cpu, on a GPU triton")
    add_names(
        "--peers", PEERS, "peer", "of ALL, may be empty; default: those of the device; with --scaling torchvision", "*"
    )
    add(
        "--sampling-ratio",
        type=_natural,
        default=2,
        metavar="N",
        help="points a bin along each axis, for operators that sample points; 0: as many as it has cells; default: 2",
    )
    add("--rounds", type=_positive_int, default=30, metavar="N", help="times each call is timed at most; default: 30")
    add(
        "--budget",
        type=_positive,
        default=15.0,
        metavar="SECONDS",
        help="of a case, after which no further round begins; default: 15",
    )
    add("--scaling", action="store_true", help="vary RoIs, channels, bins and their area instead of the workload")
    add("--quick", action="store_true", help="small inputs and three rounds: shows that it runs, not how fast")
    add("--output", type=Path, metavar="FOLDER", help="default: a new one in logs/bench_ops")
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
        "directions": list(directions),
        "layouts": ["channels_last"] if arguments.scaling else list(LAYOUTS),
        "dtypes": ["float32"],
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


def _operators(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> tuple[dict[str, Operator], dict[str, str]]:
    """The operators that were asked for, or all that there are, and why some of those are left out."""
    sys.path.append(os.getcwd())
    for module in arguments.imports:
        try:
            import_module(module)
        except ImportError as error:
            parser.error(f"--import: {error}")
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


def _one_of(choices: Sequence[str], what: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"unknown {what} {text!r}{did_you_mean(text, choices)}")
        return text

    return convert


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive whole number, got {text!r}")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Names the nearest option for an unknown one, and leaves out the usage, which would bury the message."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def parse_args(self, args=None, namespace=None):
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].partition('=')[0], options)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
