"""The general operator: any bins, sampling, channels and reduction. Every named operator is one call of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from . import inputs
from .bins import BINS, scale_axes
from .samples import Samples
from .sampling import SAMPLING, Sampling, name_of
from .spec import ROTATED, Spec

Reduction = Callable[[Samples], Tensor]

REDUCTIONS: dict[str, Reduction] = {"mean": Samples.mean, "max": Samples.max, "sum": Samples.sum}
CHANNELS = ("shared", "position_sensitive")


def register_reduction(name: str, reduction: Reduction) -> None:
    """Make ``reduction=name`` mean ``reduction``, a callable of :class:`Samples`, in :func:`pool`.

    Raises:
        ValueError: If the name is taken.
    """
    if name in REDUCTIONS:
        raise ValueError(f"reduction {name!r} is registered already")
    REDUCTIONS[name] = reduction


def pool(
    input: Tensor | Sequence[Tensor],
    boxes: inputs.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: inputs.Scale | Sequence[inputs.Scale] = 1.0,
    *,
    bins: str = "aligned",
    sampling: str | Sampling = "points",
    channels: str = "shared",
    reduction: str | Reduction = "mean",
    sampling_ratio: int | Sequence[int] = -1,
    offsets: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """RoI pooling as four choices.

    The named operators are points of this grid: RoIAlign is aligned bins, points, shared channels, mean; RoIPool
    rounded bins, cells, max; Precise RoI pooling continuous bins, integral, mean; R-FCN's rfcn bins, cells,
    position_sensitive, mean. What is said here of arguments, result and errors holds for all of them.

    Args:
        input: features (N, C, H, W) of any floating dtype; or those of each level of a pyramid.
        boxes: (K, 5) rows (image index, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels; ``x1 <= x2``,
            ``y1 <= y2``. For a pyramid: :class:`PyramidRoIs`.
        output_size: bins as (height, width), or one integer for both.
        spatial_scale: feature cells per pixel of box coordinates, or two numbers (height, width) where they differ,
            as in a map that is stretched; of a pyramid one or two for each level. Rotated boxes take one.
        bins: "continuous" (equal parts of the box), "aligned" (moved by half a cell, so that integer coordinates are
            the corners of cells), "at_least_one" (continuous, boxes of at least one cell), "rounded" (RoIPool's),
            "ps_rounded" (of torchvision's position-sensitive RoIPool), "rfcn" (R-FCN's), "rfcn_centered" (moved by half
            a cell), or "rotated" (boxes as in :func:`roi_align_rotated`; the mean or maximum of points, or of the cells
            that these lie in, of shared channels).
        sampling: "cells", "points", "integral", "counted_points" (of :func:`deform_ps_roi_pool`), a registered name or
            a :class:`Sampling`.
        channels: "shared", or "position_sensitive": bin (i, j) reads input channel ``(c PH + i) PW + j`` for output
            channel c.
        reduction: "mean", "max", "sum", a registered name, or a callable such as the modules of
            :mod:`detpool.ops.reductions`.
        sampling_ratio: points per bin along each axis, or two numbers (height, width); zero or less: as many as the
            bin has cells, rounded up. "cells" and "integral" take none.
        offsets: (K, 2, height, width), by which each bin is moved, along x and then along y, in units of the RoI's
            size. None: no bin moves, as rotated ones never do.
        backend: "triton", "cpu" or "reference"; None takes the first of these that can serve the call.

    Returns:
        (K, C, height, width), C divided by height x width if position-sensitive; dtype and memory format of ``input``.
        Differentiable with respect to ``input``, ``offsets``, the parameters of the reduction, and boxes unless bins
        are rounded or cells are sampled.

    Raises:
        TypeError, ValueError: If an argument has a wrong type, shape, device or value, or the combination has no
            meaning; the message names the argument and the reason.
        BackendError: If ``backend`` cannot serve the call.
    """
    if not (isinstance(input, Tensor) and isinstance(boxes, Tensor)) and (traced := inputs.find_proxies(input, boxes)):
        choices: dict[str, Any] = {"bins": bins, "sampling": sampling, "channels": channels, "reduction": reduction}
        choices |= {"sampling_ratio": sampling_ratio, "offsets": offsets, "backend": backend}
        return handle_torch_function(pool, traced, input, boxes, output_size, spatial_scale, **choices)
    sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,)
    maps, rois, levels, scales = inputs.parse(input, boxes, spatial_scale, 5 if bins == ROTATED else 4)
    for scale in scales:  # no generator: one RoI's pooling takes 25 Python calls
        if isinstance(scale, Sequence) and not isinstance(scale, str):
            bins, rois, scales = _to_cells(bins, rois, levels, scales, maps[0].shape[0])
            break
    ratio, parts = inputs.split_ratio(sampling_ratio, sampling)
    name = reduction if isinstance(reduction, str) else None  # not the module itself, which a cache would keep alive
    choices_made = (bins, sampling, channels, name, ratio, scales, *sizes)
    describe = _describe
    if not torch.compiler.is_compiling():
        try:
            hash(choices_made)
            describe = _describe_once
        except TypeError:  # such as a list within output_size: what is wrong is said once, without this error
            pass
    spec = describe(*choices_made)
    if channels == "position_sensitive":
        inputs.check_groups(maps[0].shape[1], spec.output_size)
    if offsets is not None:
        if bins == ROTATED:
            raise ValueError("offsets must be None for bins 'rotated', which are not moved")
        inputs.check_offsets(offsets, (rois.shape[0], 2, *spec.output_size))
        if offsets.device != rois.device:
            raise ValueError(f"offsets must be on the device of input, {rois.device}, got {offsets.device}")
        offsets = offsets.to(rois.dtype)
    if parts != (1, 1):
        size = spec.output_size[0] * parts[0], spec.output_size[1] * parts[1]
        spec = replace(spec, output_size=size)
        if offsets is not None:
            offsets = offsets.repeat_interleave(parts[0], dim=2).repeat_interleave(parts[1], dim=3)
    reduce = REDUCTIONS[reduction] if isinstance(reduction, str) else reduction
    return reduce(Samples(maps, rois, levels, offsets, spec, backend, parts))


def _to_cells(
    bins: str, rois: Tensor, levels: Tensor | None, scales: tuple[inputs.Scale, ...], images: int
) -> tuple[str, Tensor, tuple[float, ...]]:
    """The bin rule, RoIs and scales of RoIs in cells, where a map has a scale for each axis."""
    pairs = [inputs.pair_of_scales(scale) for scale in scales]
    if all(y == x for y, x in pairs):
        return bins, rois, tuple(y for y, _ in pairs)
    if bins not in BINS:
        raise ValueError(f"spatial_scale must be one number for bins {bins!r}, got {scales[0]!r}")
    if inputs.checks_values(rois.device):
        rois = inputs.checked(rois, None, images)  # while they are in pixels
    bins, rois = scale_axes(bins, rois, levels, pairs)
    return bins, rois, (1.0,) * len(pairs)


def _describe(
    bins: str,
    sampling: str | Sampling,
    channels: str,
    reduction: str | None,
    sampling_ratio: int,
    scales: tuple[Any, ...],
    *sizes: int,
) -> Spec:
    """The choices of :func:`pool`, checked."""
    size = inputs.pair(sizes if len(sizes) != 1 else sizes[0], "output_size")
    ratio = inputs.check_ratio(sampling_ratio)
    for name, value, accepted in (
        ("bins", bins, (*BINS, ROTATED)),
        ("sampling", sampling, SAMPLING),
        ("channels", channels, CHANNELS),
        ("reduction", reduction, REDUCTIONS),
    ):
        if (isinstance(value, str) or name in ("bins", "channels")) and value not in accepted:
            hint = f" (another is known once a module that registers it is imported: detpool.ops.register_{name})"
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}"
                f"{hint if name in ('sampling', 'reduction') else ''}"
            )
    rule = SAMPLING[sampling] if isinstance(sampling, str) else sampling
    if sampling == "integral" and ratio > 0:
        raise ValueError(f"sampling_ratio {ratio} has no meaning for sampling 'integral', which is exact")
    if bins == ROTATED and (sampling not in ("points", "cells") or channels != "shared"):
        raise ValueError("bins 'rotated' go with sampling 'points' or 'cells' and channels 'shared' only")
    if ratio > 0 and rule.points is None and rule.windows is not None:
        raise ValueError(f"sampling_ratio {ratio} has no meaning for sampling {sampling!r}: all cells count")
    if ratio <= 0 and sampling == "counted_points":
        raise ValueError(f"sampling_ratio must be positive for sampling 'counted_points', got {ratio}")
    numbers = tuple([inputs.check_scale(scale) for scale in scales])
    groups = size if channels == "position_sensitive" else (1, 1)
    return Spec(bins, sampling if isinstance(sampling, str) else name_of(sampling), size, numbers, ratio, groups)


_describe_once = lru_cache(maxsize=1024, typed=True)(_describe)  # 1 and 1.0 are different sizes


def record_samples(
    operator: Callable[..., Tensor],
    input: Tensor,
    boxes: inputs.Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float,
) -> list[Samples]:
    """What an operator samples: the argument of the reduction, of each call of :func:`pool` that it makes.

    Args:
        operator: called as ``operator(input, boxes, output_size, spatial_scale)``; does nothing with ``input`` but pass
            it on.
        input, boxes, output_size, spatial_scale: as :func:`pool`.

    Raises:
        AttributeError, TypeError: If it does something else with ``input``.
    """
    recorder = _Recorder(input)
    operator(recorder, boxes, output_size, spatial_scale)
    return recorder.samples


class _Recorder:
    """Stands for a tensor until :func:`pool` is called with it."""

    def __init__(self, input: Tensor) -> None:
        self.input, self.samples = input, list[Samples]()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Tensor:
        if function is not pool:
            raise TypeError("the operator does something else with the features than to pass them on to pool")
        recorder, *others = args
        reduction = kwargs["reduction"]
        reduce = REDUCTIONS[reduction] if isinstance(reduction, str) else reduction

        def keep_and_reduce(samples: Samples) -> Tensor:
            recorder.samples.append(samples)
            return reduce(samples)

        result: Tensor = function(recorder.input, *others, **kwargs | {"reduction": keep_and_reduce})
        return result


def pools_pyramids(operator: Callable[..., Tensor]) -> bool:
    """Whether ``operator`` takes the maps of a pyramid at once: one of this package that is a mean or a maximum.

    Args:
        operator: a function, or ``functools.partial`` of one.
    """
    keywords = getattr(operator, "keywords", {})
    function = getattr(operator, "func", operator)
    return (
        getattr(function, "__module__", "").startswith(f"{__package__}.")
        and not isinstance(function, type)
        and isinstance(keywords.get("sampling", ""), str)
        and keywords.get("reduction", "mean") in ("mean", "max")
    )
