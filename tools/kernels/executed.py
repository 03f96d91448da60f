"""Counts the instructions that a warp executes per bin of the forward, from machine code; needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton


@dataclass(frozen=True)
class Forward:
    """Instruction counts of one program, which computes several bins one after another."""

    once: int
    """Instructions before the first bin."""
    by_loads: dict[int, int]
    """Instructions per bin, including those of the loop over bins, by the number of loads of features for the bin."""

    def per_bin(self, loads: int, bins: int) -> float:
        """Instructions per bin of a program with `bins` bins and `loads` loads per bin."""
        return self.once / bins + self.by_loads[loads]


def count_forward(cubin: bytes) -> Forward:
    """Counts instructions along the paths through the loop over bins, without its innermost loops over taps.

    Args:
        cubin: a compiled `weighted_sum_kernels.forward` whose programs have several bins.
    """
    code, labels = _disassemble(cubin)
    targets = [_target(line, labels) for line in code]
    # the loop over bins is the longest; calls, to code after the exit, are divisions of denormal numbers
    last = max(
        (number for number, target in enumerate(targets) if target is not None and target < number),
        key=lambda number: number - (targets[number] or 0),
    )
    first = targets[last]
    assert first is not None
    by_loads: dict[int, int] = {}
    ways = [(first, 0, 0)]
    while ways:
        at, count, loads = ways.pop()
        while True:
            count += 1
            loads += bool(re.search(r"\bLDG\.E\.128\b", code[at]))
            target = targets[at]
            if at == last:
                by_loads[loads] = max(by_loads.get(loads, 0), count)
                break
            if target is not None and target > at and "CALL" not in code[at]:
                if not code[at].startswith("@"):
                    at = target
                    continue
                if target <= last:
                    ways.append((target, count, loads))
            at += 1
    calls = sum("CALL" in line for line in code[:first])
    return Forward(first - calls, by_loads)


def _disassemble(cubin: bytes) -> tuple[list[str], dict[str, int]]:
    """Instructions, and the positions of labels."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in printed.splitlines():
        if found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(found[1])
    return code, labels


def _target(line: str, labels: dict[str, int]) -> int | None:
    """Position to which a branch jumps; None if the line is not a branch."""
    found = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
    return labels[found[1]] if found else None
