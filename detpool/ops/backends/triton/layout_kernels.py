"""Copies of feature maps whose numbers lie in another order."""

import triton
import triton.language as tl

from .addresses import offsets_of
from .bins import SIZES

_OUTER = [f"{name}_{axis}" for name in ("source", "target") for axis in "nho"]


@triton.jit(do_not_specialize=[*SIZES, "others", "length", *_OUTER])
def transpose(
    # pointers
    source,
    target,
    # sizes
    height,
    others,
    channels,
    length,
    # strides
    source_n,
    source_h,
    source_o,
    source_c,
    source_l,
    target_n,
    target_h,
    target_o,
    target_c,
    target_l,
    # compile time
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``target[n, h, o, c, l] = source[n, h, o, c, l]``, cast to the type of ``target``.

    One program copies BLOCK channels times BLOCK positions of the last axis: a matrix of which one tensor holds the
    rows side by side, the other the columns. Each is read or written along its own neighbors; between the two the
    numbers change threads within the program.
    """
    outer = tl.program_id(0)
    n, h, o = (outer // (height * others)).to(tl.int64), outer // others % height, outer % others
    c = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    position = (tl.program_id(2) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (c < channels) & (position < length)
    at = source + n * source_n + offsets_of(h, source_h, WIDE) + offsets_of(o, source_o, WIDE)
    value = tl.load(at + offsets_of(c, source_c, WIDE) + offsets_of(position, source_l, WIDE), mask=mask)
    at = target + n * target_n + offsets_of(h, target_h, WIDE) + offsets_of(o, target_o, WIDE)
    at += offsets_of(c, target_c, WIDE) + offsets_of(position, target_l, WIDE)
    tl.store(at, value.to(target.dtype.element_ty), mask=mask)
