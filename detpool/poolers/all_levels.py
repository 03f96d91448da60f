"""Pooling each RoI from every pyramid level, and joining what the levels give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detpool.poolers.roi_pooler import Operator, RoIPooler

FUSIONS = ("sum", "concat", "attention")


class AllLevelsPooler(RoIPooler):
    """Pools each RoI from all levels of a pyramid instead of the one that fits its size.

    With P_l the RoI pooled from level l of L, the result is

    - `fusion="sum"`: the sum of the P_l, the extractor of GRoIE (Rossi et al., ICPR 2020) without its convolutions;
    - `"concat"`: a 1 x 1 convolution of their concatenation back to C channels;
    - `"attention"`: sum of a_l P_l, where a 1 x 1 convolution of the concatenation and a softmax over levels give the
      weights a of each bin.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        output_size: pooled size, an int or `(height, width)`, in bins.
        operator: see `RoIPooler`.
        fusion: "sum", "concat" or "attention".
        channels: channels the operator gives, which the convolution of "concat" and "attention" is built for.
        strides: see `RoIPooler`.
        canonical_scale, canonical_level: without effect, since no level is chosen; taken so that this pooler can stand
            wherever a config that sets them has a `RoIPooler`.

    Raises:
        ValueError: for another `fusion`, or as `RoIPooler`.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        operator: Operator,
        *,
        fusion: str = "sum",
        channels: int = 256,
        strides: Sequence[float] | None = None,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__(
            featmap_names,
            output_size,
            operator,
            strides=strides,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
        self.fusion = fusion
        levels = len(self.featmap_names)
        if fusion != "sum":
            self.mix = nn.Conv2d(levels * channels, channels if fusion == "concat" else levels, kernel_size=1)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Arguments, result and errors are those of `RoIPooler.forward`."""
        features, rois, scales = self._inputs(x, boxes, image_shapes)
        pooled = [self._pool(feature, rois, scale) for feature, scale in zip(features, scales, strict=True)]
        if self.fusion == "sum":
            return torch.stack(pooled).sum(0)
        mixed = self.mix(torch.cat(pooled, 1))
        if self.fusion == "concat":
            return mixed
        weights = mixed.softmax(1).unbind(1)
        return torch.stack([weight[:, None] * part for weight, part in zip(weights, pooled, strict=True)]).sum(0)
