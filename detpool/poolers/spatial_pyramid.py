"""Pooling of SPP-Net: several grids over each RoI, concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detpool.ops import spp
from detpool.ops.spp import grids_of
from detpool.poolers.roi_pooler import RoIPooler


class SpatialPyramidPooler(RoIPooler):
    """Spatial pyramid pooling of each RoI (He et al., SPP-Net, ECCV 2014): max pooling on several grids.

    The bins of all grids form one column: the output is (K, C, number of bins, 1), with 50 bins for grids 1, 2, 3, 6.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        levels: size of each grid in bins, an integer or (height, width).
        further: `strides`, `canonical_scale` and `canonical_level` of `RoIPooler`.

    Raises:
        ValueError: For the reasons of `RoIPooler`.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        levels: Sequence[int | Sequence[int]] = (1, 2, 3, 6),
        **further: Any,
    ) -> None:
        grids = grids_of(levels)
        super().__init__(featmap_names, (sum(height * width for height, width in grids), 1), spp, **further)
        self.levels = grids

    def _pool(self, features: Any, rois: Any, scale: Any) -> Tensor:
        return spp(features, rois, self.levels, scale).unsqueeze(-1)
