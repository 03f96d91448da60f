"""Primitive 2: the maximum over what each bin reads, with gradients for features, and for RoIs if points are sampled.

    out[k,c,i,j] = max over n of V[k, channel(c,i,j), n]

V are the features in the integer cells of the bin, or their bilinear values at its points. Beside the maximum comes its
place, by which the gradient finds its way back: the cell ``y W + x``, or the point ``a 2^15 + b``, the
first in row-major order; -1 where a bin reads nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import PRIMITIVES, choose, reference
from .bins import BINS
from .layout import is_channels_last
from .registration import batched, differentiable, fake, operator
from .sampling import SAMPLING, argmax_dtype
from .spec import Spec
from .weighted_sum import empty_maps, empty_pooled


def window_max(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: Spec, backend: str | None = None
) -> Tensor:
    """The maximum over each bin.

    Args:
        maps: features (N, C, H, W) of one level or several, with ``spec.scales``; of any floating dtype.
        rois: (K, 5) rows (image index, x1, y1, x2, y2) in pixels; float64 for float64 features, else float32.
        levels: (K,) int64, the map of each RoI; None for one map.
        spec: bin rule, sampling rule (with windows or points) and sizes.
        backend: name of a backend, or None for the first that can serve the call.

    Returns:
        (K, C / (GH GW), PH, PW), dtype of the features, channels_last if the first map is; 0 for a bin without cells
        or points, NaN for one that holds NaN. Differentiable with respect to maps, and to RoIs if points are sampled.

    Raises:
        ValueError: If values of RoIs are not valid, on a CPU; elsewhere such a RoI yields NaN. If points are so many
            that they cannot be numbered: a ``ratio``, or with adaptive sampling twice a side of a map, of 2^15.
        BackendError: If ``backend`` cannot serve the call.
    """
    if spec.bins in BINS and (BINS[spec.bins].rounds or SAMPLING[spec.sampling].windows is not None):
        rois = rois.detach()  # of rounded edges or whole cells: nothing moves with them
    longest = max(max(features.shape[2:]) for features in maps)
    most = spec.ratio if spec.ratio > 0 else 2 * longest + 6
    if SAMPLING[spec.sampling].windows is None and most >= 1 << reference.POINT_BITS:
        raise ValueError(
            f"the maximum over points numbers fewer than {1 << reference.POINT_BITS} of them per bin and axis, got "
            f"sampling_ratio {spec.ratio} on maps of up to {longest} rows or columns"
        )
    chosen = choose(backend, "window_max", maps[0], spec)
    if chosen == "reference":
        return reference.window_max(maps, rois, levels, spec)
    followed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*maps, rois))
    return _window_max(maps, rois, levels, spec.text, chosen, followed)[0]


@operator
def _window_max(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, spec: str, backend: str, with_places: bool
) -> tuple[Tensor, Tensor]:
    """The maxima and their places, which are as many bytes again: of no elements if no gradient will ask for them."""
    return PRIMITIVES[backend].window_max(maps, rois, levels, Spec.of(spec), with_places)


@operator
def _window_max_of_grad(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    shapes: Sequence[int],
    channels_last: Sequence[bool],
    spec: str,
    backend: str,
) -> list[Tensor]:
    """Gradients of the maps, whose shapes follow each other in ``shapes``."""
    sizes = [tuple(shapes[n : n + 4]) for n in range(0, len(shapes), 4)]
    return PRIMITIVES[backend].window_max_of_grad(grad, argmax, rois, levels, sizes, channels_last, Spec.of(spec))


@operator
def _window_max_roi_grads(
    grad: Tensor,
    argmax: Tensor,
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    spec: str,
    backend: str,
) -> Tensor:
    return PRIMITIVES[backend].window_max_roi_grads(grad, argmax, maps, rois, levels, Spec.of(spec))


@fake(_window_max)
def _(
    maps: Sequence[Tensor], rois: Tensor, levels: Any, spec: str, backend: str, with_places: bool
) -> tuple[Tensor, Tensor]:
    output = empty_pooled(maps[0], rois.shape[0], Spec.of(spec))
    dtype = argmax_dtype(maps, Spec.of(spec))
    return output, torch.empty_like(output, dtype=dtype) if with_places else output.new_empty(0, dtype=dtype)


@fake(_window_max_of_grad)
def _(grad: Tensor, argmax: Any, rois: Any, levels: Any, shapes: Any, channels_last: Any, *_: Any) -> list[Tensor]:
    return empty_maps(grad, shapes, channels_last)


@fake(_window_max_roi_grads)
def _(grad: Tensor, argmax: Any, maps: Any, rois: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(rois)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, rois, levels, spec, backend, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or the places would get a gradient of zeros, as large as the output
    of_rois = rois.requires_grad
    ctx.save_for_backward(output[1], rois, levels, *(maps if of_rois else ()))
    ctx.like = [(m.shape, m.dtype, m.device, is_channels_last(m)) for m in maps]
    ctx.rest = (spec, backend, of_rois)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
    if grad is None:
        return [None] * len(ctx.like), None, None, None, None, None
    argmax, rois, levels, *maps = ctx.saved_tensors
    spec, backend, of_rois = ctx.rest
    of_maps = ctx.needs_input_grad[0]
    if torch.is_grad_enabled():
        # the gradients are to be differentiated in their turn
        return *_differentiable_grads(ctx, grad, argmax, rois, levels, maps, Spec.of(spec)), None, None, None, None
    grad_maps: list[Any] = [None] * len(of_maps)
    grad_rois = None
    if any(of_maps):
        shapes = [n for shape, *_ in ctx.like for n in shape]
        last = [channels_last for *_, channels_last in ctx.like]
        grad_maps = _window_max_of_grad(grad, argmax, rois, levels, shapes, last, spec, backend)
    if of_rois:
        grad_rois = _window_max_roi_grads(grad, argmax, maps, rois, levels, spec, backend)
    return grad_maps, grad_rois, None, None, None, None


def _differentiable_grads(
    ctx: Any,
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    maps: list[Tensor],
    spec: Spec,
) -> tuple[Any, Any]:
    """Gradients of maps and RoIs through the reference's value at the places of the maxima."""
    of_maps, of_rois = ctx.needs_input_grad[0], ctx.rest[2]
    # Where features were not kept, any will do: given the places, the output is linear in them.
    maps = maps or [torch.zeros(s, dtype=t, device=d, requires_grad=True) for s, t, d, _ in ctx.like]
    inputs = [*maps, rois]
    needed = [n for n, need in enumerate((*of_maps, of_rois)) if need]
    with torch.enable_grad():
        output = reference.value_at(maps, rois, levels, argmax, spec)
    found = torch.autograd.grad(output, [inputs[n] for n in needed], grad, create_graph=True, allow_unused=True)
    grads = dict(zip(needed, found, strict=True))
    return [grads.get(n) for n in range(len(maps))], grads.get(len(maps))


differentiable(_window_max, _backward, _save)
for _registered in (_window_max, _window_max_of_grad, _window_max_roi_grads):
    batched(_registered)
