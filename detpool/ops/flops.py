"""Floating-point operations of our operators, for PyTorch's counter, which counts an operator it does not know as 0.

    from torch.utils.flop_counter import FlopCounterMode

    import detpool.ops.flops  # registers the formulas; nothing else imports this module

    with FlopCounterMode() as counter:
        ops.roi_align(features, boxes, 7).sum().backward()

As PyTorch's formulas do, these count what the definition asks for, a multiplication and an addition as two, whatever
the backend makes of it. With R the cells that all bins of all RoIs read (of a bilinear point its 4, fewer at the border
of the map; those outside it are not read) and C the output channels:

| operator | operations |
|---|---|
| weighted sum | 2 C R |
| its gradients of features, of RoIs, of the weights of taps | 2 C R each |
| maximum over cells | C R, a comparison a cell |
| maximum over points | 2 C R, and C comparisons a point |
| its gradients of features | an addition an output; over points 8, of 4 cells |
| its gradients of RoIs | 16 an output, of 4 cells along 2 axes |

Bins and taps themselves, which are of no channel, are not counted, nor are the elementwise operations of reductions
that are composed of these, nor what the reference backend computes, as it does maxima of rotated boxes: that is 0. How
many cells are read depends on values: tensors without any (fake ones) are refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import weighted_sum, window_max  # noqa: F401 (the operators must be there)
from .backends import reference
from .sampling import SAMPLING, call_taps
from .spec import ROTATED, Spec

Size = Sequence[int]


def count_reads(sizes: Sequence[Size], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec) -> int:
    """How many cells all bins of a weighted sum read, one that several bins or taps read as often as they do.

    Args:
        sizes: (N, C, H, W) of each map.
        rois, levels, offsets, spec: as :func:`detpool.ops.weighted_sum.weighted_sum` takes them.
    """
    total = 0
    for own, moved, scale, lengths in _by_level(sizes, rois, levels, offsets, spec):
        if spec.bins == ROTATED:
            y, x = reference.rotated_taps(own[:, 1:], spec, scale, lengths)[:2]
        else:
            rule, bins = SAMPLING[spec.sampling], reference.bins_of(spec, own, moved, scale, lengths)
            y, x = (call_taps(rule, axis, length, spec.ratio) for axis, length in zip(bins, lengths, strict=True))
        total += _pairs(y.index >= 0, x.index >= 0)
    return total


def count_maximum(sizes: Sequence[Size], rois: Tensor, levels: Tensor | None, spec: Spec) -> int:
    """Operations of a maximum for one output channel."""
    total = 0
    for own, _, scale, lengths in _by_level(sizes, rois, levels, None, spec):
        bins = reference.bins_of(spec, own, None, scale, lengths)
        windows = SAMPLING[spec.sampling].windows
        if windows is not None:
            y, x = (windows(axis, length, spec.ratio) for axis, length in zip(bins, lengths, strict=True))
            rows, columns = (edges[..., 1] - edges[..., 0] for edges in (y, x))
            total += int((rows * columns.transpose(1, 2)).sum())
        else:
            points = reference.points_of(spec, *bins, lengths)
            reads = (axis.index.flatten(3) >= 0 for axis in points)
            total += 2 * _pairs(*reads) + _pairs(*(axis.exists for axis in points))
    return total


def _by_level(
    sizes: Sequence[Size], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: Spec
) -> list[tuple[Tensor, Tensor | None, float, tuple[int, int]]]:
    """RoIs, offsets, scale, rows and columns of each map."""
    found = []
    for level, (size, scale) in enumerate(zip(sizes, spec.scales, strict=True)):
        rows = slice(None) if levels is None else levels == level
        moved = None if offsets is None else offsets.detach()[rows]
        found.append((rois.detach()[rows], moved, scale, (size[2], size[3])))
    return found


def _pairs(y: Tensor, x: Tensor) -> int:
    """How many pairs of what is true in the last dimensions all bins have: y (K, PH, J, T), x (K, PW, J, T)."""
    return int((y.sum(3) * x.sum(3).transpose(1, 2)).sum())


def _shapes(numbers: Sequence[int]) -> list[Size]:
    return [numbers[n : n + 4] for n in range(0, len(numbers), 4)]


@register_flop_formula(torch.ops.detpool.weighted_sum, get_raw=True)
def _(maps: Any, rois: Any, levels: Any, offsets: Any, spec: str, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.shape[1] * count_reads([m.shape for m in maps], rois, levels, offsets, Spec.of(spec))


@register_flop_formula(torch.ops.detpool.weighted_sum_of_grad, get_raw=True)
def _(grad: Tensor, rois: Any, levels: Any, offsets: Any, shapes: Any, _: Any, spec: str, *__: Any, **___: Any) -> int:
    return 2 * grad.shape[1] * count_reads(_shapes(shapes), rois, levels, offsets, Spec.of(spec))


@register_flop_formula(torch.ops.detpool.weighted_sum_roi_grads, get_raw=True)
def _(grad: Tensor, maps: Any, rois: Any, levels: Any, offsets: Any, spec: str, *_: Any, **__: Any) -> int:
    return 2 * grad.shape[1] * count_reads([m.shape for m in maps], rois, levels, offsets, Spec.of(spec))


@register_flop_formula(torch.ops.detpool.weighted_sum_tap_grads, get_raw=True)
def _(grad: Tensor, features: Any, rois: Any, offsets: Any, y: Tensor, wy: Any, x: Tensor, *_: Any, **__: Any) -> int:
    return 2 * grad.shape[1] * _pairs(y >= 0, x >= 0)


@register_flop_formula(torch.ops.detpool.window_max, get_raw=True)
def _(maps: Any, rois: Any, levels: Any, spec: str, *_: Any, out_val: Any, **__: Any) -> int:
    channels: int = out_val[0].shape[1]
    return channels * count_maximum([m.shape for m in maps], rois, levels, Spec.of(spec))


@register_flop_formula(torch.ops.detpool.window_max_of_grad, get_raw=True)
def _(grad: Tensor, argmax: Any, rois: Any, levels: Any, shapes: Any, _: Any, spec: str, *__: Any, **___: Any) -> int:
    return grad.numel() * (1 if SAMPLING[Spec.of(spec).sampling].windows is not None else 8)


@register_flop_formula(torch.ops.detpool.window_max_roi_grads, get_raw=True)
def _(grad: Tensor, *_: Any, **__: Any) -> int:
    return 16 * grad.numel()
