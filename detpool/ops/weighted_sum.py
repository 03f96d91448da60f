"""Primitive 1: the weighted sum of what each bin reads, with gradients for features, RoIs and offsets.

    out[k,c,i,j] = sum_a sum_b wy[k,i,j,a] wx[k,i,j,b] F[batch[k], channel(c,i,j), iy[k,i,j,a], ix[k,i,j,b]]

Cells and weights, the *taps* of a bin, follow from the RoIs by a bin rule and a sampling rule. The backend makes them:
compiled code on a CPU, inside the kernel on a GPU, tensor operations in the reference.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .backends import PRIMITIVES, choose, has_roi_grads, reference
from .bins import BINS
from .layout import is_channels_last, memory_format
from .registration import batched, differentiable, fake, operator
from .sampling import SAMPLING, Taps, call_taps
from .spec import Spec


def weighted_sum(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    spec: Spec,
    backend: str | None = None,
) -> Tensor:
    """The weighted sum of each bin's taps.

    Args:
        maps: features (N, C, H, W) of one level or several, with ``spec.scales``; of any floating dtype.
        rois: (K, 5) rows (image index, x1, y1, x2, y2) in pixels, or (K, 6) for rotated bins; float64 for float64
            features, else float32.
        levels: (K,) int64, the map of each RoI; None for one map.
        offsets: (K, 2, PH, PW), by which each bin is moved, x before y, in units of the RoI's size; None for none.
        spec: bin rule, sampling rule and sizes.
        backend: name of a backend, or None for the first that can serve the call.

    Returns:
        (K, C / (GH GW), PH, PW), dtype of the features, channels_last if the first map is. Differentiable with respect
        to maps, RoIs and offsets, to any order.

    Raises:
        ValueError: If values of RoIs or offsets are not valid, on a CPU; elsewhere such a RoI yields NaN.
        BackendError: If ``backend`` cannot serve the call.
    """
    if spec.bins in BINS and (BINS[spec.bins].rounds or SAMPLING[spec.sampling].windows is not None):
        rois = rois.detach()  # of rounded edges or whole cells: nothing moves with them
    chosen = choose(backend, "weighted_sum", maps[0], spec)
    if chosen == "reference":
        return reference.weighted_sum(maps, rois, levels, offsets, spec)
    return _weighted_sum(maps, rois, levels, offsets, spec.text, chosen)


@operator
def _weighted_sum(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor | None, offsets: Tensor | None, spec: str, backend: str
) -> Tensor:
    return PRIMITIVES[backend].weighted_sum(maps, rois, levels, offsets, Spec.of(spec))


@operator
def _weighted_sum_of_grad(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    shapes: Sequence[int],
    channels_last: Sequence[bool],
    spec: str,
    backend: str,
) -> list[Tensor]:
    """Gradients of the maps, whose shapes follow each other in ``shapes``."""
    sizes = [tuple(shapes[n : n + 4]) for n in range(0, len(shapes), 4)]
    return PRIMITIVES[backend].weighted_sum_of_grad(grad, rois, levels, offsets, sizes, channels_last, Spec.of(spec))


@operator
def _weighted_sum_roi_grads(
    grad: Tensor,
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    spec: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the RoIs, and of the offsets if there are any (else an empty tensor)."""
    return PRIMITIVES[backend].weighted_sum_roi_grads(grad, maps, rois, levels, offsets, Spec.of(spec))


@operator
def _weighted_sum_tap_grads(
    grad: Tensor,
    features: Tensor,
    rois: Tensor,
    offsets: Tensor | None,
    cells_y: Tensor,
    weights_y: Tensor,
    cells_x: Tensor,
    weights_x: Tensor,
    spec: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights of taps that a rule of a user's own has made, of one map."""
    taps = Taps(cells_y, weights_y), Taps(cells_x, weights_x)
    found: tuple[Tensor, Tensor] = PRIMITIVES[backend].weighted_sum_tap_grads(
        grad, features, rois, offsets, taps, Spec.of(spec)
    )
    return found


@fake(_weighted_sum)
def _(maps: Sequence[Tensor], rois: Tensor, levels: Any, offsets: Any, spec: str, backend: str) -> Tensor:
    return empty_pooled(maps[0], rois.shape[0], Spec.of(spec))


@fake(_weighted_sum_of_grad)
def _(grad: Tensor, rois: Any, levels: Any, offsets: Any, shapes: Sequence[int], last: Sequence[bool], *_: Any) -> Any:
    return empty_maps(grad, shapes, last)


@fake(_weighted_sum_roi_grads)
def _(grad: Tensor, maps: Any, rois: Tensor, levels: Any, offsets: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rois), rois.new_empty(0) if offsets is None else torch.empty_like(offsets)


@fake(_weighted_sum_tap_grads)
def _(grad: Any, features: Any, rois: Any, offsets: Any, cells_y: Any, weights_y: Tensor, *rest: Any) -> Any:
    return torch.empty_like(weights_y), torch.empty_like(rest[1])


def empty_pooled(features: Tensor, rois: int, spec: Spec) -> Tensor:
    """What pooling returns, without its values."""
    channels = features.shape[1] // (spec.groups[0] * spec.groups[1])
    output = features.new_empty((rois, channels, *spec.output_size))
    return output.contiguous(memory_format=memory_format(is_channels_last(features)))


def empty_maps(grad: Tensor, shapes: Sequence[int], channels_last: Sequence[bool]) -> list[Tensor]:
    """Gradients of maps, without their values."""
    return [
        grad.new_empty(shapes[4 * n : 4 * n + 4]).contiguous(memory_format=memory_format(last))
        for n, last in enumerate(channels_last)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, rois, levels, offsets, spec, backend = inputs
    # Features are kept only where a gradient needs them: a user may then change them in place, and memory is freed.
    keeps = rois.requires_grad or (offsets is not None and offsets.requires_grad)
    ctx.save_for_backward(rois, levels, offsets, *(maps if keeps else ()))
    ctx.like = [(m.shape, m.dtype, m.device, is_channels_last(m)) for m in maps]
    ctx.rest = (spec, backend)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rois, levels, offsets, *maps = ctx.saved_tensors
    spec, backend = ctx.rest
    of_maps, of_rois, of_offsets = (ctx.needs_input_grad[n] for n in (0, 1, 3))
    through_rule = (of_rois or of_offsets) and not has_roi_grads(backend, Spec.of(spec))
    if torch.is_grad_enabled() or (through_rule and torch.compiler.is_compiling()):
        # The gradients are to be differentiated in their turn, or traced through a rule of a user's own, of which the
        # backend has none. Where features were not kept, any will do: the output is linear in them.
        maps = maps or [torch.zeros(s, dtype=t, device=d, requires_grad=True) for s, t, d, _ in ctx.like]
        inputs = [*maps, rois, offsets]
        needed = [n for n, need in enumerate((*of_maps, of_rois, of_offsets)) if need]
        with torch.enable_grad():
            output = reference.weighted_sum(maps, rois, levels, offsets, Spec.of(spec))
        found = torch.autograd.grad(
            output, [inputs[n] for n in needed], grad, create_graph=torch.is_grad_enabled(), allow_unused=True
        )
        grads = dict(zip(needed, found, strict=True))
        of_maps = [grads.get(n) for n in range(len(maps))]
        return of_maps, grads.get(len(maps)), None, grads.get(len(maps) + 1), None, None
    grad_maps: list[Any] = [None] * len(of_maps)
    grad_rois = grad_offsets = None
    if any(of_maps):
        shapes = [n for shape, *_ in ctx.like for n in shape]
        last = [channels_last for *_, channels_last in ctx.like]
        grad_maps = _weighted_sum_of_grad(grad, rois, levels, offsets, shapes, last, spec, backend)
    if through_rule:
        grad_rois, grad_offsets = _grads_through_rule(grad, maps, rois, levels, offsets, Spec.of(spec), backend)
    elif of_rois or of_offsets:
        grad_rois, grad_offsets = _weighted_sum_roi_grads(grad, maps, rois, levels, offsets, spec, backend)
    return grad_maps, grad_rois, None, grad_offsets if of_offsets else None, None, None


def _grads_through_rule(
    grad: Tensor,
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    spec: Spec,
    backend: str,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of RoIs and offsets through a rule of a user's own: the backend has those of the taps' weights."""
    leaf = rois.detach().requires_grad_()
    shift = None if offsets is None else offsets.detach().requires_grad_()
    weights: list[Tensor] = []
    grads: list[Tensor] = []
    for level, features in enumerate(maps):
        own = replace(spec, scales=(spec.scales[level],))
        some = slice(None) if levels is None else (levels == level).nonzero()[:, 0]
        lengths = (features.shape[2], features.shape[3])
        with torch.enable_grad():
            moved = None if shift is None else shift[some]
            bins = reference.bins_of(own, leaf[some], moved, own.scales[0], lengths)
            rule = SAMPLING[spec.sampling]
            y, x = (call_taps(rule, axis, length, spec.ratio) for axis, length in zip(bins, lengths, strict=True))
        tables = (y.index, y.weight.detach(), x.index, x.weight.detach())
        found = _weighted_sum_tap_grads(
            grad[some], features, rois[some], None if offsets is None else offsets[some], *tables, own.text, backend
        )
        pairs = [(t.weight, g) for t, g in zip((y, x), found, strict=True) if t.weight.requires_grad]
        weights += [weight for weight, _ in pairs]
        grads += [of_weight for _, of_weight in pairs]
    if not weights:  # nothing that the rule returns moves with boxes
        return None, None
    inputs = [leaf] if shift is None else [leaf, shift]
    of_rois, *of_offsets = torch.autograd.grad(weights, inputs, grads, allow_unused=True)
    return of_rois, of_offsets[0] if of_offsets else None


differentiable(_weighted_sum, _backward, _save)
for _registered in (_weighted_sum, _weighted_sum_of_grad, _weighted_sum_roi_grads, _weighted_sum_tap_grads):
    batched(_registered)
