"""Which map of a pyramid each RoI is pooled from."""

import torch
from torch import Tensor

from .backends import PRIMITIVES, choose
from .registration import batched, fake, operator
from .spec import Spec

_SPEC = Spec("aligned", "points", (1, 1), (1.0,), 1)


def assign_levels(
    boxes: Tensor,
    num_levels: int,
    min_level: float,
    canonical_scale: float = 224,
    canonical_level: float = 4,
) -> Tensor:
    """Pyramid level of each box: ``floor(k0 + log2(sqrt(area) / canonical_scale) + 1e-6)``, clamped.

    Feature Pyramid Networks (Lin et al., CVPR 2017), equation 1; the 1e-6 is torchvision's and Detectron's guard
    against a box of exactly the canonical size falling one level down by rounding.

    Args:
        boxes: (K, 4) ``x1, y1, x2, y2`` in image pixels.
        num_levels: number of levels to choose from.
        min_level: level of the finest map, ``log2(stride)``.
        canonical_scale: side in image pixels of the box that belongs to ``canonical_level``.
        canonical_level: level, as ``log2(stride)``, of a box of the canonical size.

    Returns:
        (K,) int64, 0 (the finest map) to ``num_levels - 1``. A box without area, or one that is not finite, goes to the
        finest map.
    """
    boxes = boxes.detach().to(torch.float32)
    backend = choose(None, "weighted_sum", boxes[:, :, None, None], _SPEC)
    return _assign_levels(boxes, num_levels, canonical_level - min_level, canonical_scale, backend)


@operator
def _assign_levels(boxes: Tensor, levels: int, shift: float, canonical_scale: float, backend: str) -> Tensor:
    if backend == "triton":
        out: Tensor = PRIMITIVES[backend].assign_levels(boxes, levels, shift, canonical_scale)
        return out
    return levels_of(boxes, levels, shift, canonical_scale)


def levels_of(boxes: Tensor, levels: int, shift: float, canonical_scale: float) -> Tensor:
    """The formula of :func:`assign_levels` in PyTorch, `shift` the canonical level counted from the finest map."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    level = torch.floor(shift + torch.log2(side / canonical_scale) + 1e-6)
    return level.nan_to_num(nan=0.0).clamp(min=0, max=levels - 1).to(torch.int64)


@fake(_assign_levels)
def _(boxes: Tensor, *_: object) -> Tensor:
    return boxes.new_empty(boxes.shape[0], dtype=torch.int64)


batched(_assign_levels)
