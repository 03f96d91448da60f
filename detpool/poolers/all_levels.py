"""Pooling of each RoI from every pyramid level, with fusion of the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detpool.poolers.roi_pooler import Operator, RoIPooler

FUSIONS = ("sum", "max", "concat", "attention")


class AllLevelsPooler(RoIPooler):
    """Pools each RoI from all levels of a pyramid instead of the one level that fits its size.

    With P_l the RoI pooled from level l of L, the result is

    - `fusion="sum"`: the sum of the P_l, as in GRoIE (Rossi et al., ICPR 2020, arXiv:2004.13665);
    - `"max"`: their element-wise maximum, as in PANet's adaptive feature pooling (Liu et al., CVPR 2018, section 3.2);
    - `"concat"`: a 1 x 1 convolution of their concatenation back to C channels;
    - `"attention"`: the sum of the a_l P_l, where the weights a_l of each bin come from a 1 x 1 convolution of the
      concatenation and a softmax over levels.

    Both papers have a layer between pooling and fusion (PANet: `before=3` in its mask branch; GRoIE: `before=5,
    shared=True`), and GRoIE has another layer after fusion.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        output_size: pooled size, an int or `(height, width)`, in bins.
        operator: see `RoIPooler`.
        fusion: "sum", "max", "concat" or "attention".
        channels: channels of the operator's output, for which the convolutions are built.
        before: kernel size of a convolution with ReLU on each P_l before fusion; odd, or 0 for none.
        shared: whether this convolution has the same weights for all levels.
        after: kernel size of a convolution with ReLU after fusion; odd, or 0 for none.
        further: `strides` of `RoIPooler`; its `canonical_scale` and `canonical_level` are accepted but have no effect,
            so that this pooler can replace a `RoIPooler` in any config.

    Raises:
        ValueError: If `fusion` is another, a kernel size is even or negative, `shared` is set without `before`, or for
            the reasons of `RoIPooler`.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        operator: Operator,
        *,
        fusion: str = "sum",
        channels: int = 256,
        before: int = 0,
        shared: bool = False,
        after: int = 0,
        **further: Any,
    ) -> None:
        super().__init__(featmap_names, output_size, operator, **further)
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
        for name, side in (("before", before), ("after", after)):
            if side != 0 and (side < 0 or side % 2 == 0):
                raise ValueError(f"{name} must be 0 or the odd side of a convolution, got {side}")
        if shared and not before:
            raise ValueError("shared is of the convolutions before levels are joined, and before=0 makes none")
        self.fusion = fusion
        self.channels = channels
        levels = len(self.featmap_names)
        self.before = nn.ModuleList(_convolve(channels, before) for _ in range(1 if shared else levels))
        self.after = _convolve(channels, after)
        self.convolves = fusion in ("concat", "attention") or before + after > 0
        if fusion in ("concat", "attention"):
            self.mix = nn.Conv2d(levels * channels, channels if fusion == "concat" else levels, kernel_size=1)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pools all boxes. Arguments, result and errors are those of `RoIPooler.forward`.

        Raises:
            ValueError: Also if the convolutions were built for another number of channels.
        """
        features, rois, scales = self._inputs(x, boxes, image_shapes)
        pooled = [self._pool(feature, rois, scale) for feature, scale in zip(features, scales, strict=True)]
        if self.convolves and pooled[0].shape[1] != self.channels:
            raise ValueError(
                f"fusion={self.fusion!r} is built for channels={self.channels}, the operator gives {pooled[0].shape[1]}"
            )
        layers = list(self.before) * (len(pooled) // len(self.before))
        return self.after(self._fuse([layer(part) for layer, part in zip(layers, pooled, strict=True)]))

    def _fuse(self, pooled: list[Tensor]) -> Tensor:
        if self.fusion == "sum":
            return torch.stack(pooled).sum(0)
        if self.fusion == "max":
            return torch.stack(pooled).amax(0)
        mixed = self.mix(torch.cat(pooled, 1))
        if self.fusion == "concat":
            return mixed
        weights = mixed.softmax(1).unbind(1)
        return torch.stack([weight[:, None] * part for weight, part in zip(weights, pooled, strict=True)]).sum(0)


def _convolve(channels: int, side: int) -> nn.Module:
    if side == 0:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, channels, side, padding=side // 2), nn.ReLU())
