"""Sampling of boxes for the losses, with a single wait for the GPU for all images.

The size of the result of `nonzero` depends on values, so each call waits for all queued work of the GPU. Here the host
requests the counts of all images at once, and then passes the sizes itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


def count_samples(labels: list[Tensor]) -> Tensor:
    """Counts the boxes of each image that are positive (label 1 or more) and background (0): int64 (images, 2)."""
    return torch.stack([torch.stack([(label >= 1).sum(), (label == 0).sum()]) for label in labels])


def draw_samples(
    sampler: BalancedPositiveNegativeSampler, labels: list[Tensor], counts: list[list[int]]
) -> list[tuple[Tensor, Tensor]]:
    """Samples like ``sampler(labels)``, and returns sorted indices.

    Args:
        sampler: number of samples per image, and maximum fraction of positives.
        labels: labels (n,) of each image.
        counts: `count_samples` of the labels.

    Returns:
        For each image, the indices of sampled positives, int64 (p,), and of sampled background, int64 (q,).
    """
    drawn = []
    most = int(sampler.batch_size_per_image * sampler.positive_fraction)
    for label, (positive, negative) in zip(labels, counts, strict=True):
        chosen = min(positive, most)
        others = min(negative, sampler.batch_size_per_image - chosen)
        drawn.append((_draw(label >= 1, positive, chosen), _draw(label == 0, negative, others)))
    return drawn


def places_of(mask: Tensor, count: int) -> Tensor:
    """Indices, int64 (count,), at which a mask (n,) is true; ``count`` is their number, known to the host."""
    return torch.nonzero_static(mask, size=count)[:, 0]


def _draw(mask: Tensor, count: int, chosen: int) -> Tensor:
    return places_of(mask, count)[torch.randperm(count, device=mask.device)[:chosen]].sort().values
