"""SPP-Net's pooling: several grids over each RoI, concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detpool.ops import spp
from detpool.poolers.roi_pooler import RoIPooler


class SpatialPyramidPooler(RoIPooler):
    """Spatial pyramid pooling of each RoI (He et al., SPP-Net, ECCV 2014): maxima on several grids.

    The grids' bins are one column, so the output is (K, C, bins of all grids, 1): 50 bins for 1, 2, 3 and 6.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        levels: the grids, each an integer or (height, width).
        strides, canonical_scale, canonical_level: see `RoIPooler`.

    Raises:
        ValueError: as `RoIPooler`.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        levels: Sequence[int | Sequence[int]] = (1, 2, 3, 6),
        *,
        strides: Sequence[float] | None = None,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        grids = [(level, level) if isinstance(level, int) else tuple(level) for level in levels]
        bins = sum(height * width for height, width in grids)
        super().__init__(
            featmap_names,
            (bins, 1),
            spp,
            strides=strides,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        self.levels = grids

    def _pool(self, features: Any, rois: Any, scale: Any) -> Tensor:
        return spp(features, rois, self.levels, scale).unsqueeze(-1)
