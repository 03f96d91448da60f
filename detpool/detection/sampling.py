"""Which boxes losses count, and which proposals stay, without waiting for a GPU more than once for all images.

The host does not know the size of what depends on values, so that every `nonzero` waits for all that a GPU has still to
do. Here it asks for the counts of all images at once, and says the sizes itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import batched_nms, nms

from detpool.ops.registration import fake, operator


def count_samples(labels: list[Tensor]) -> Tensor:
    """int64 (images, 2): how many of each image's boxes are of an object (label 1 or more), and background (0)."""
    return torch.stack([torch.stack([(label >= 1).sum(), (label == 0).sum()]) for label in labels])


def draw_samples(
    sampler: BalancedPositiveNegativeSampler, labels: list[Tensor], counts: list[list[int]]
) -> list[tuple[Tensor, Tensor]]:
    """What ``sampler(labels)`` draws, as places in order.

    Args:
        sampler: how many of an image count, and which fraction of objects at most.
        labels: of each image (n,).
        counts: `count_samples` of them.

    Returns:
        of each image int64 (p,) and (q,), the drawn boxes of objects and of background.
    """
    drawn = []
    most = int(sampler.batch_size_per_image * sampler.positive_fraction)
    for label, (positive, negative) in zip(labels, counts, strict=True):
        chosen = min(positive, most)
        others = min(negative, sampler.batch_size_per_image - chosen)
        drawn.append((_draw(label >= 1, positive, chosen), _draw(label == 0, negative, others)))
    return drawn


def places_of(mask: Tensor, count: int) -> Tensor:
    """int64 (count,), where a mask (n,) is true, as the host knows to be so often."""
    return torch.nonzero_static(mask, size=count)[:, 0]


def _draw(mask: Tensor, count: int, chosen: int) -> Tensor:
    return places_of(mask, count)[torch.randperm(count, device=mask.device)[:chosen]].sort().values


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """As torchvision's `batched_nms`, which waits for a GPU several times for each group of many boxes."""
    if torch.compiler.is_compiling():
        rows: Tensor = suppress_traced(boxes, scores, groups, threshold)
        return rows
    if boxes.device.type == "cpu":
        return batched_nms(boxes, scores, groups, threshold)
    return suppress_at_once(boxes, scores, groups, threshold)


def suppress_at_once(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`suppress` by one call, each group moved to a place of its own: exact in float64, as boxes have fewer digits."""
    moved = boxes.double()
    if len(boxes):
        moved = moved + (groups * (moved.max() - moved.min() + 1))[:, None]
    return nms(moved, scores.double(), threshold)


@operator
def suppress_traced(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`suppress` as one operator of a traced program, which cannot ask how many boxes there are."""
    return suppress(boxes, scores, groups, threshold)


@fake(suppress_traced)
def _(boxes: Tensor, *_: object) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
