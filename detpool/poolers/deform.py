"""Pooling of each RoI with bins that are moved by offsets predicted from its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from detpool.ops import PyramidRoIs
from detpool.ops.inputs import pair
from detpool.poolers.roi_pooler import Operator, RoIPooler


class DeformRoIPooler(RoIPooler):
    """Deformable RoI pooling (Dai et al., ICCV 2017, arXiv:1703.06211, section 2.2, figure 3) with its offset branch.

    Each RoI is pooled with its bins in place, a fully connected layer predicts the offsets of its bins from the result,
    and the RoI is pooled again. The layer is initialized with zeros, so an untrained pooler moves no bins.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        output_size: pooled size, an int or `(height, width)`, in bins.
        operator: `operator(features, rois, offsets=..., output_size=..., spatial_scale=...)`, with `offsets` (K, 2, PH,
            PW): `detpool.ops.deform_roi_pool`, or a `functools.partial` of it.
        channels: channels of the operator's output, for which the layer is built.
        further: `strides`, `canonical_scale` and `canonical_level` of `RoIPooler`.

    Raises:
        ValueError: For the reasons of `RoIPooler`.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        operator: Operator,
        *,
        channels: int = 256,
        **further: Any,
    ) -> None:
        super().__init__(featmap_names, output_size, operator, **further)
        rows, columns = self.bins = pair(output_size, "output_size")
        self.channels = channels
        self.offset = nn.Linear(channels * rows * columns, 2 * rows * columns)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def _pool(self, features: Any, rois: Any, scale: Any) -> Tensor:
        """Pools twice, the second time with offsets; arguments are those of `RoIPooler._pool`.

        Raises:
            ValueError: If the layer was built for another number of channels.
        """
        boxes = rois.rois if isinstance(rois, PyramidRoIs) else rois
        sizes = {"output_size": self.output_size, "spatial_scale": scale}
        in_place = boxes.new_zeros((boxes.shape[0], 2, *self.bins))
        pooled = self.operator(features, rois, offsets=in_place, **sizes)
        if pooled.shape[1] != self.channels:
            raise ValueError(f"pooler is built for channels={self.channels}, the operator gives {pooled.shape[1]}")
        offsets = self.offset(pooled.flatten(1)).unflatten(1, (2, *self.bins))
        return self.operator(features, rois, offsets=offsets, **sizes)
