"""SPP-Net's pooling: several grids over each RoI, concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detpool.ops import spp
from detpool.ops.spp import grids_of
from detpool.poolers.roi_pooler import RoIPooler


class SpatialPyramidPooler(RoIPooler):
    """Spatial pyramid pooling of each RoI (He et al., SPP-Net, ECCV 2014): maxima on several grids.

    The grids' bins are one column, so the output is (K, C, bins of all grids, 1): 50 bins for 1, 2, 3 and 6.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        levels: the grids, each an integer or (height, width).
        further: `strides`, `canonical_scale` and `canonical_level` of `RoIPooler`.

    Raises:
        ValueError: as `RoIPooler`.
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
