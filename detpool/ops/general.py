"""The general form: any bins, sampling, channels and reduction; and the registers of rules by name."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from . import bins as bin_rules
from . import boxes as box_formats
from . import reductions
from .sampled import Sampled
from .sampling import CELLS, INTEGRAL, POINTS, Sampling
from .separable import check_groups

Reduction = Callable[[Sampled], Tensor]

BINS: dict[str, bin_rules.Rule] = {
    "continuous": bin_rules.continuous,
    "aligned": bin_rules.aligned,
    "rounded": bin_rules.rounded,
    "rfcn": bin_rules.rfcn,
}
SAMPLING: dict[str, Sampling] = {"cells": CELLS, "points": POINTS, "integral": INTEGRAL}
REDUCTIONS: dict[str, Reduction] = {"mean": reductions.mean, "max": reductions.maximum, "sum": reductions.total}
CHANNELS = ("shared", "position_sensitive")

_T = TypeVar("_T")


def register_sampling(name: str, rule: Sampling) -> None:
    """Make ``sampling=name`` mean ``rule`` in :func:`pool`.

    Raises:
        ValueError: the name is taken.
    """
    _register(SAMPLING, "sampling", name, rule)


def register_reduction(name: str, reduction: Reduction) -> None:
    """Make ``reduction=name`` mean ``reduction``, a callable of a :class:`Sampled`, in :func:`pool`.

    Raises:
        ValueError: the name is taken.
    """
    _register(REDUCTIONS, "reduction", name, reduction)


def pool(
    input: Tensor,
    boxes: box_formats.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    bins: str = "aligned",
    sampling: str | Sampling = "points",
    channels: str = "shared",
    reduction: str | Reduction = "mean",
    sampling_ratio: int = -1,
    backend: str | None = None,
) -> Tensor:
    """RoI pooling as four choices.

    The named operators are points of this grid: RoIAlign is aligned bins, points, shared channels, mean; RoIPool
    rounded bins, cells, max; Precise RoI pooling continuous bins, integral, mean; R-FCN's rfcn bins, cells,
    position_sensitive, mean.

    Args:
        input: features (N, C, H, W), floating.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels; ``x1 <= x2``,
            ``y1 <= y2``.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates.
        bins: "continuous", "aligned" (continuous, moved by half a cell), "rounded" (RoIPool's) or "rfcn".
        sampling: "cells", "points", "integral", a registered name or a :class:`Sampling`.
        channels: "shared", or "position_sensitive": bin (i, j) reads input channel ``(c PH + i) PW + j`` for output
            channel c.
        reduction: "mean", "max", "sum", a registered name, or a callable such as the modules of
            :mod:`detpool.ops.reductions`.
        sampling_ratio: points a bin along each axis; zero or less: as many as the bin has cells, rounded up. Only
            "points" take it.
        backend: backend by name; None takes the first that can serve the call.

    Returns:
        (K, C, height, width), C divided by height x width if position-sensitive; dtype of ``input``. Differentiable
        with respect to ``input``, the parameters of the reduction, and boxes unless bins are rounded or cells are
        sampled.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value, or a combination without a
            meaning, with the reason.
        BackendError: ``backend`` cannot serve the call.
    """
    bin_rule = _named(BINS, "bins", bins)
    rule = _named(SAMPLING, "sampling", sampling)
    reduce = _named(REDUCTIONS, "reduction", reduction)
    if channels not in CHANNELS:
        raise ValueError(f"channels must be one of {', '.join(map(repr, CHANNELS))}, got {channels!r}")
    if sampling_ratio > 0 and rule.points is None and rule.windows is not None:
        raise ValueError(f"sampling_ratio {sampling_ratio} has no meaning for sampling {sampling!r}: all cells count")
    if reduce is reductions.maximum and rule.points is None and rule.windows is None:
        raise ValueError(
            f"reduction {reduction!r} does not go with sampling {sampling!r}: it has no finite set of values to compare"
        )
    batch, coords, size, scale = box_formats.prepare(input, boxes, output_size, spatial_scale)
    groups = size if channels == "position_sensitive" else (1, 1)
    check_groups(input.shape[1], size, groups)
    y, x = bin_rule(coords if rule.dtype is None else coords.to(rule.dtype), scale, size)
    return reduce(Sampled(input, batch, y, x, rule, ratio=sampling_ratio, groups=groups, backend=backend))


def _register(register: dict[str, _T], kind: str, name: str, entry: _T) -> None:
    if name in register:
        raise ValueError(f"{kind} {name!r} is registered already")
    register[name] = entry


def _named(register: dict[str, _T], kind: str, name: str | _T) -> _T:
    if not isinstance(name, str):
        return name
    if name not in register:
        raise ValueError(f"{kind} must be one of {', '.join(map(repr, register))}, got {name!r}")
    return register[name]
