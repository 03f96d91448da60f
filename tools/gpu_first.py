#!/usr/bin/env python
"""Ten minutes of measurements on a GPU: the most important ones come first, and each row is written immediately.

    python tools/gpu_first.py                                    # into results/first_<name of the GPU>
    TRITON_INTERPRET=1 python tools/gpu_first.py --tiny --output /tmp/first    # no GPU: does it run?

Needs PyTorch, torchvision, Triton, numba and NumPy, no network and no installation. One file per table:

    operators.csv      c4, rfcn, fpn and mask, in both layouts, float32 and float16, ours and torchvision's
    rois.csv           1, 16 and 128 RoIs, one box over the whole image with adaptive sampling, 8 x 512 RoIs
    deterministic.csv  under torch.use_deterministic_algorithms
    blocks.csv         other choices of blocks, warps and bins per program for the forward of c4
    bandwidth.csv      copies within and beyond the L2 cache, and additions of vectors at random places

Times are in milliseconds: `idle_ms` from an idle GPU until it is idle again, `replay_ms` as a CUDA graph, `main_ms` for
the longest kernel alone. `kernels` and `waits` are counts per call. `error` is the greatest difference from
torchvision's result, relative to its largest magnitude. The exit status is 1 if an error exceeds the tolerance or
something failed. Measurements for which there was no time are listed.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic matrix products

import torch
from bench.contenders import BACKWARD, DTYPES, FORWARD, LAYOUTS, Absent, Case, detpool_contender
from bench.gpu import capture, profile_call, time_from_idle
from bench.operators import examine, functions_of
from bench.peers import torchvision_peer
from bench.run import compare
from bench.workloads import WORKLOADS, Workload, build
from command_line import Parser, positive

from detpool.files import write_json_atomically
from detpool.ops.backends.triton import launch
from detpool.run_record import provenance

ROOT = Path(__file__).resolve().parents[1]
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}
"""A GPU fuses multiplications and additions, which moves sampling points: errors of 1.3e-5 have been observed."""
OPERATORS = {"rfcn": "ps_roi_align"}
"""Operators of the workloads for which it is not roi_align."""
COLUMNS = (
    *("workload", "operator", "layout", "dtype", "direction", "implementation", "choice"),
    *("idle_ms", "replay_ms", "main_ms", "busy_ms", "kernels", "waits", "main", "error", "note"),
)
Row = Mapping[str, Any]


@dataclasses.dataclass
class Session:
    """Output folder, settings and remaining time of a session."""

    output: Path
    device: str
    tiny: bool
    end: float
    """End time on the clock of ``time.monotonic``."""
    problems: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def rounds(self) -> int:
        return 1 if self.tiny else 30

    def add(self, table: str, row: Row, measure: Callable[[], Row]) -> None:
        """Measures and writes one row; a failure is written as a row too, and does not end the session."""
        name = " ".join(str(row[column]) for column in COLUMNS if row.get(column))
        if time.monotonic() > self.end:
            self.left_out.append(f"{table}: {name}")
            return
        try:
            found = measure()
        except Absent as reason:
            found = {"note": f"absent: {reason}"}
        except Exception as error:  # a failure must not prevent later measurements
            found = {"note": f"{type(error).__name__}: {error}".partition("\n")[0]}
            self.problems.append(f"{table}: {name}: {found['note']}")
        if "error" in found and found["error"] > (most := TOLERANCES[row["dtype"]]):
            off = f"differs from torchvision by {found['error']:.2g}, tolerance {most:g}"
            self.problems.append(f"{table}: {name}: {off}")
        path = self.output / f"{table}.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in {**row, **found}.items()})
        numbers = " ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, float))
        print(f"{table}: {name}: {numbers} {found.get('note', '')}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="small inputs: shows that it runs, not how fast")
    text = "after which nothing new begins; default: 9"
    parser.add_argument("--minutes", type=positive, default=9.0, metavar="N", help=text)
    text = "default: results/first_<name of the GPU>"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=text)
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("PyTorch finds no GPU here; TRITON_INTERPRET=1 before the command shows that the program runs")
    name = torch.cuda.get_device_name().replace(" ", "_") if device == "cuda" else "interpreter"
    output = options.output or ROOT / "results" / f"first_{name}"
    output.mkdir(parents=True, exist_ok=True)
    for table in TABLES:  # rows are appended, so remove files of earlier sessions
        (output / f"{table}.csv").unlink(missing_ok=True)
    command = ["python", "tools/gpu_first.py", *(sys.argv[1:] if argv is None else argv)]
    write_json_atomically(output / "session.json", provenance(command, ("triton", "numba", "numpy")))
    session = Session(output, device, options.tiny, time.monotonic() + 60 * options.minutes)
    for measure in TABLES.values():
        measure(session)
    for line in session.left_out:
        print(f"no time for {line}")
    for line in session.problems:
        print(f"error: {line}", file=sys.stderr)
    print(f"results in {output}")
    return 1 if session.problems else 0


def measure_operators(session: Session) -> None:
    """Measures the four workloads, the most important first."""
    for name, dtype, direction in product(("c4", "rfcn", "fpn", "mask"), TOLERANCES, (FORWARD, BACKWARD)):
        _compare(session, "operators", workload_of(name, session.tiny), dtype, direction, tuple(LAYOUTS))


def measure_rois(session: Session) -> None:
    """Measures few RoIs, many RoIs, and one as large as the image."""
    size: dict[str, Any] = {"channels": 256, "sides": (32, 500)}
    if session.tiny:
        size = {"channels": 4, "sides": (16, 40), "image_size": (64, 96), "output_size": (1, 1)}
    for rois in (1, 2) if session.tiny else (1, 16, 128):
        workload = build(f"{rois} RoIs", rois=rois, **size)
        _compare(session, "rois", workload, "float32", FORWARD, ("channels_last",))
    height, width = workload.image_size
    none, whole = torch.zeros(0, 4), torch.tensor([[0.0, 0.0, width, height]])
    workload = dataclasses.replace(workload, name="whole image, adaptive", boxes=(whole, none))
    _compare(session, "rois", workload, "float32", FORWARD, ("channels_last",), sampling_ratio=0)
    many = build("8 x 512 RoIs", rois=1 if session.tiny else 1024, **size)
    features = tuple(level.repeat(4, 1, 1, 1) for level in many.features)
    many = dataclasses.replace(many, features=features, boxes=many.boxes * 4)
    for direction in (FORWARD, BACKWARD):
        _compare(session, "rois", many, "float32", direction, ("channels_last",))


def measure_deterministic(session: Session) -> None:
    """Measures the backward with deterministic algorithms, of detpool and torchvision."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for name in ("c4", "rfcn"):
            workload = workload_of(name, session.tiny)
            _compare(session, "deterministic", workload, "float32", BACKWARD, ("channels_last",))
    finally:
        torch.use_deterministic_algorithms(False)


def measure_blocks(session: Session) -> None:
    """Measures the forward with other numbers of channels, warps and bins per program than `launch` chooses."""
    for dtype in TOLERANCES:
        case = _case(session, workload_of("c4", session.tiny), dtype, FORWARD)
        for choice in product((64, 128, 256), (1,) if session.tiny else (1, 2, 4, 8), ("one bin", "a row of bins")):
            row = _row(case, "channels_last", "detpool")
            row |= {"choice": f"{choice[0]} channels, {choice[1]} warps, {choice[2]}"}
            session.add("blocks", row, partial(_measure_blocks, session, case, *choice))


def _measure_blocks(session: Session, case: Case, channels: int, warps: int, bins: str) -> Row:
    with blocks_of(channels, warps, bins):
        return _measure(session, detpool_contender(case, "triton", "channels_last").run)


@contextmanager
def blocks_of(channels: int, warps: int, bins: str) -> Iterator[None]:
    """Sets channels, warps and bins per program for the block, in place of those that `launch` would choose."""
    block = mock.patch.object(launch, "channel_block", return_value=channels)
    enough = mock.patch.object(launch, "ENOUGH", math.inf if bins == "one bin" else 0)
    with block, enough, mock.patch.object(launch, "_warps", return_value=warps):
        yield


def measure_bandwidth(session: Session) -> None:
    """Measures rates of the memory, to compare kernels with; gigabytes per second are in the column `note`."""
    for name, size in {"copy beyond L2": 1 << 30, "copy within L2": 1 << 23}.items():
        size = 1 << 14 if session.tiny else size
        source = torch.ones(size, dtype=torch.uint8, device=session.device)
        target = torch.empty_like(source)
        _add_bandwidth(session, name, partial(target.copy_, source), 2 * size)
    rows, vectors = (64, 16) if session.tiny else (1 << 16, 1 << 13)
    target = torch.zeros(vectors, 256, device=session.device)
    source = torch.ones(rows, 256, device=session.device)
    index = torch.randint(0, vectors, (rows,), generator=torch.Generator().manual_seed(0)).to(session.device)
    _add_bandwidth(session, "vectors added at random", partial(target.index_add_, 0, index, source), source.nbytes)


def _add_bandwidth(session: Session, name: str, call: Callable[[], object], size: int) -> None:
    def measure() -> Row:
        found = dict(_measure(session, call))
        return found | {"note": f"{size / 1e6 / found['main_ms']:.0f} GB/s" if found["main_ms"] else "no kernel"}

    session.add("bandwidth", {"choice": name}, measure)


@cache
def workload_of(name: str, tiny: bool) -> Workload:
    """A workload of `bench.workloads`; if `tiny`, a much smaller one for the interpreter (seconds per RoI)."""
    if not tiny:
        return WORKLOADS[name](False)
    size: dict[str, Any] = {"channels": 4, "rois": 1, "sides": (16, 40), "image_size": (64, 96), "output_size": (1, 1)}
    special: dict[str, Any] = {"fpn": {"strides": (8, 16)}, "rfcn": {"position_sensitive": True, "output_size": (1, 2)}}
    return build(name, **size | special.get(name, {}))


def _case(session: Session, workload: Workload, dtype: str, direction: str, sampling_ratio: int = 2) -> Case:
    operator = examine(OPERATORS.get(workload.name, "roi_align"), functions_of())
    return Case(workload, operator, direction, DTYPES[dtype], 1, sampling_ratio, session.device)


def _row(case: Case, layout: str, implementation: str) -> dict[str, Any]:
    dtype = str(case.dtype).removeprefix("torch.")
    names = (case.workload.name, case.operator.name, layout, dtype, case.direction, implementation)
    return dict(zip(COLUMNS, names, strict=False))


def _compare(
    session: Session,
    table: str,
    workload: Workload,
    dtype: str,
    direction: str,
    layouts: Sequence[str],
    sampling_ratio: int = 2,
) -> None:
    """Measures torchvision, on contiguous features, which suit it best, and detpool for each layout."""
    case = _case(session, workload, dtype, direction, sampling_ratio)
    expected: dict[str, Any] = {}

    def theirs() -> Row:
        contender = torchvision_peer(case)
        expected.update(contender.run())
        return _measure(session, contender.run)

    def ours(layout: str) -> Row:
        contender = detpool_contender(case, "triton", layout)
        found = dict(_measure(session, contender.run))
        if expected:
            found["error"] = compare(contender.run(), expected, TOLERANCES[dtype])[0]
        return found

    session.add(table, _row(case, "contiguous", "torchvision"), theirs)
    for layout in layouts:
        session.add(table, _row(case, layout, "detpool"), partial(ours, layout))


def _measure(session: Session, call: Callable[[], object]) -> Row:
    call()  # compiles
    found: dict[str, Any] = {"idle_ms": time_from_idle(call, session.device, session.rounds)}
    profiled = profile_call(call, session.device, min(3, session.rounds))
    found |= dataclasses.asdict(profiled)
    try:
        found["replay_ms"] = time_from_idle(capture(call, session.device), session.device, session.rounds)
    except RuntimeError as error:
        found["note"] = f"no CUDA graph: {error}".partition("\n")[0]
    return found


TABLES = {
    "operators": measure_operators,
    "rois": measure_rois,
    "deterministic": measure_deterministic,
    "blocks": measure_blocks,
    "bandwidth": measure_bandwidth,
}
"""Functions that measure the tables, the most important first."""

if __name__ == "__main__":
    sys.exit(main())
