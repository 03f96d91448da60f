"""Which boxes losses count, without waiting for a GPU more than once for all images.

The host does not know the size of what depends on values, so that every `nonzero` waits for all that a GPU has still to
do. Here it asks for the counts of all images at once, and says the sizes itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


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
