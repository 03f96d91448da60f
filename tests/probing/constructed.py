"""A detector without training whose answers are known: images hold ramps that say where their object is."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from detpool import ops
from detpool.detection import JitteredProposals, TwoStageDetector, TwoStageHeads
from detpool.detection.transform import NormalizeAndBatch
from detpool.poolers import RoIPooler

STRIDE = 8
SLOPE = 1 / 256
"""Of the ramps, a pixel."""


def ramps(size: int, box: Tensor) -> Tensor:
    """An image (3, size, size) whose first two channels rise to the right and downwards, 0.5 at a box's centre."""
    places = torch.arange(size) + 0.5
    x, y = (0.5 + SLOPE * (places - centre) for centre in ((box[:2] + box[2:]) / 2).tolist())
    return torch.stack([x.expand(size, size), y[:, None].expand(size, size), torch.zeros(size, size)])


class Cells(nn.Module):
    """Means over cells of `STRIDE` pixels: of a ramp exactly its values at the cells' centres."""

    out_channels = 3

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": nn.functional.avg_pool2d(images, STRIDE)}


class Centre(nn.Module):
    """Class 1, and the deltas that move a box to where both ramps are 0.5, in its own units: it keeps its size.

    Of two bins a side, the difference of a ramp is the slope times half the box's side.
    """

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        x, y = pooled[:, 0], pooled[:, 1]
        width, height = 2 * (x[:, :, 1] - x[:, :, 0]).mean(1), 2 * (y[:, 1] - y[:, 0]).mean(1)
        dx, dy = ((0.5 - ramp.mean((1, 2))) / side for ramp, side in ((x, width), (y, height)))
        deltas = torch.stack([dx, dy, torch.zeros_like(dx), torch.zeros_like(dx)], 1).repeat(1, 2)
        return torch.tensor([0.0, 4.0]).expand(len(pooled), 2), deltas


def detector(aligned: bool, noise: float) -> TwoStageDetector:
    """The detector, whose RoIAlign is `aligned`, with one proposal an object at distance `noise`."""
    operator = functools.partial(ops.roi_align, sampling_ratio=2, aligned=aligned)
    pooler = RoIPooler(["0"], 2, operator, strides=[STRIDE])
    heads = TwoStageHeads(pooler, nn.Identity(), Centre(), bbox_reg_weights=(1.0, 1.0, 1.0, 1.0))
    proposals = JitteredProposals(1, background_per_object=0, noise=noise)
    transform = NormalizeAndBatch([0.0] * 3, [1.0] * 3, STRIDE)
    return TwoStageDetector(Cells(), proposals, heads, transform).eval()


SCORE = math.exp(4) / (1 + math.exp(4))
"""Of every detection."""
