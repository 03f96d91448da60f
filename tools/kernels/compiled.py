"""Compiles kernel launches for GPUs that need not be present, and inspects the compiled code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from detpool.ops.backends.triton.launch import resolve

from .launches import Launch, kernel_of

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}


@dataclass(frozen=True)
class Facts:
    """Properties of a compiled kernel."""

    registers: int
    """Registers per thread (AMD: vector registers)."""
    spilled: int
    """Spilled bytes per thread (AMD: spilled registers)."""
    shared: int
    """Bytes of shared memory per program."""
    loop: int
    """Instructions of the innermost loop that accesses global memory; 0 if everything is unrolled."""
    load_bits: int
    """Widest load of adjacent numbers, in bits."""
    store_bits: int
    """Widest store of adjacent numbers, or on NVIDIA atomic addition, in bits."""
    loads: str
    """Number of loads of blocks of global memory by loop depth in the source."""
    stores: str


def compile_launch(launched: Launch, target: str) -> Facts:
    """Compile and inspect.

    Args:
        launched: the launch.
        target: a name of `TARGETS`.
    """
    compiled = compile_kernel(launched, target)
    loads, stores = _block_operations(compiled.asm["ttir"])
    if "ptx" in compiled.asm:
        return _nvidia(compiled, loads, stores)
    return _amd(compiled, loads, stores)


def compile_kernel(launched: Launch, target: str) -> Any:
    """Compiles a launch with Triton; `asm` of the result holds the code of all compilation stages."""
    kernel = kernel_of(launched)
    constants, types = dict(launched.constants), dict(launched.signature)
    if "RULE" in constants:
        constants["RULE"] = resolve(constants["RULE"])
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launched.divisible},
    )
    options = {"num_warps": launched.num_warps}
    if launched.maxnreg is not None:
        options["maxnreg"] = launched.maxnreg
    return triton.compile(source, target=TARGETS[target], options=options)


def _nvidia(compiled: Any, loads: str, stores: str) -> Facts:
    ptx = compiled.asm["ptx"]
    usage = _resources(compiled.asm["cubin"])
    return Facts(
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        loop=_innermost(
            ptx.splitlines(), r"^(\$L\w+):", r"\bbra(?:\.uni)?\s+(\$L\w+)", r"\b(?:ld|st|red|atom)\.global"
        ),
        load_bits=_widest(r"ld\.global[\w.]*?(?:\.v(\d))?\.[bfsu](\d+)", ptx),
        store_bits=_widest(r"(?:st|red|atom)\.global[\w.]*?(?:\.v(\d))?\.(?:noftz\.)?[bfsu](\d+)(?:x2)?", ptx),
        loads=loads,
        stores=stores,
    )


def _amd(compiled: Any, loads: str, stores: str) -> Facts:
    code = compiled.asm["amdgcn"]
    number = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", code)}
    words = r"(?:global|buffer)_(?:{})_dword(?:x(\d))?"
    return Facts(
        registers=number["vgpr_count"],
        spilled=number["vgpr_spill_count"] + number["sgpr_spill_count"],
        shared=number["group_segment_fixed_size"],
        loop=_innermost(
            code.splitlines(),
            r"^(\.LBB\w+):",
            r"\bs_c?branch\w*\s+(\.LBB\w+)",
            r"\b(?:global|buffer)_(?:load|store|atomic)",
        ),
        load_bits=max((32 * int(count or 1) for count in re.findall(words.format("load"), code)), default=0),
        store_bits=max((32 * int(count or 1) for count in re.findall(words.format("store"), code)), default=0),
        loads=loads,
        stores=stores,
    )


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}


def _widest(pattern: str, code: str) -> int:
    return max((int(count or 1) * int(bits) for count, bits in re.findall(pattern, code)), default=0)


def _innermost(lines: list[str], label: str, branch: str, memory: str) -> int:
    """Number of instructions of the shortest loop (a label and a later branch back to it) that accesses memory."""
    begin: dict[str, int] = {}
    shortest = 0
    for number, line in enumerate(lines):
        if found := re.match(label, line):
            begin[found[1]] = number
        elif (found := re.search(branch, line)) and found[1] in begin:
            body = [text for text in lines[begin[found[1]] + 1 : number + 1] if re.match(r"\s+[@a-z]", text)]
            if any(re.search(memory, text) for text in body) and (shortest == 0 or len(body) < shortest):
                shortest = len(body)
    return shortest


def _block_operations(ttir: str) -> tuple[str, str]:
    """Loads and stores of whole blocks by the depth of the loops around them, in the form "1 at depth 2"."""
    depth, braces, loops = 0, 0, []
    loads: dict[int, int] = {}
    stores: dict[int, int] = {}
    for line in ttir.splitlines():
        if re.search(r"\bscf\.(for|while)\b", line):
            loops.append(braces)
            depth += 1
        block = re.search(r"tensor<\d+(?:x\d+)?x!tt\.ptr", line)
        if block and re.search(r"\btt\.load\b", line):
            loads[depth] = loads.get(depth, 0) + 1
        elif block and re.search(r"\btt\.(store|atomic_rmw)\b", line):
            stores[depth] = stores.get(depth, 0) + 1
        braces += line.count("{") - line.count("}")
        while loops and braces <= loops[-1]:
            loops.pop()
            depth -= 1
    return _listed(loads), _listed(stores)


def _listed(counts: dict[int, int]) -> str:
    return ", ".join(f"{count} at depth {depth}" for depth, count in sorted(counts.items())) or "none"
