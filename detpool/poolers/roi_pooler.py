"""Pooling each RoI with any operator from the pyramid level that fits its size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, box_area

from detpool.ops import roi_align

Operator = Callable[..., Tensor]


def assign_levels(
    boxes: Tensor,
    num_levels: int,
    min_level: float,
    canonical_scale: float = 224,
    canonical_level: float = 4,
) -> Tensor:
    """Pyramid level of each box: `floor(k0 + log2(sqrt(area) / canonical_scale) + 1e-6)`, clamped.

    Feature Pyramid Networks (Lin et al., CVPR 2017), equation 1; the 1e-6 is torchvision's and Detectron's guard
    against a box of exactly the canonical size falling one level down by rounding.

    Args:
        boxes: (K, 4) `x1, y1, x2, y2` in image pixels.
        num_levels: number of levels to choose from.
        min_level: level of the finest map, `log2(stride)`.
        canonical_scale: side in image pixels of the box that belongs to `canonical_level`.
        canonical_level: level, as `log2(stride)`, of a box of the canonical size.

    Returns:
        (K,) int64, 0 (the finest map) to `num_levels - 1`. A box without area goes to the finest map.
    """
    side = box_area(boxes.float()).clamp(min=0).sqrt()
    level = torch.floor(canonical_level + torch.log2(side / canonical_scale) + 1e-6 - min_level)
    # A box that is not finite goes to the finest map too, where the operator refuses it.
    return level.nan_to_num(nan=0.0).clamp(min=0, max=num_levels - 1).to(torch.int64)


class _Reunite(torch.autograd.Function):
    """The rows of all levels in the order of the boxes: `_Reunite.apply(rows of each level, *pooled)`.

    One pass over the pooled features each way. Indexing a concatenation takes two, and its gradient, an addition that
    must be ready for repeated rows, longer than pooling itself.
    """

    @staticmethod
    def forward(ctx: Any, rows: list[Tensor], *pooled: Tensor) -> Tensor:
        ctx.rows = rows
        channels_last = all(part.is_contiguous(memory_format=torch.channels_last) for part in pooled)
        out = torch.empty(
            (sum(len(part) for part in pooled), *pooled[0].shape[1:]),
            dtype=pooled[0].dtype,
            device=pooled[0].device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        for row, part in zip(rows, pooled, strict=True):
            out.index_copy_(0, row, part)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad.index_select(0, row) for row in ctx.rows)


class RoIPooler(MultiScaleRoIAlign):
    """Pools each RoI with any operator from the pyramid level that fits its size.

    Called like `torchvision.ops.MultiScaleRoIAlign`, of which it is a subclass so that torchvision's detectors take
    it as their `box_roi_pool`; with `operator=ops.roi_align` it computes the same.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        output_size: pooled size, an int or `(height, width)`, in bins.
        operator: `operator(features, rois, output_size=..., spatial_scale=...)`, with `features` (N, C, H, W) and
            `rois` (K, 5) `(batch, x1, y1, x2, y2)` in image pixels, returning (K, C', PH, PW): a function of
            `detpool.ops`, a `functools.partial` of one (modules among its arguments are trained), or a module.
        strides: stride in image pixels of each named map. Default: powers of two inferred from the sizes of the maps
            and of the largest image, as torchvision does.
        canonical_scale: side in image pixels of a box that belongs to `canonical_level` (default 224).
        canonical_level: level, `log2(stride)`, of a box of that size (default 4, that is stride 16).

    Raises:
        ValueError: without map names, if `strides` has another length than `featmap_names` or is not positive, or if
            `canonical_scale` is not positive.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        operator: Operator,
        *,
        strides: Sequence[float] | None = None,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        names = list(featmap_names)
        if not names:
            raise ValueError("featmap_names is empty: name at least one feature map to pool from")
        if strides is not None and (len(strides) != len(names) or min(strides) <= 0):
            raise ValueError(
                f"strides must hold one positive stride (in image pixels) for each of the feature maps {names}, "
                f"got {list(strides)}"
            )
        if canonical_scale <= 0:
            raise ValueError(f"canonical_scale must be a positive number of pixels, got {canonical_scale}")
        size = output_size if isinstance(output_size, int) else tuple(output_size)
        # The base class insists on a sampling_ratio; the operator has its own, so this one is never read.
        super().__init__(names, size, -1, canonical_scale=canonical_scale, canonical_level=canonical_level)
        self.operator = operator
        # A partial hides the modules among its arguments (a learned reduction) from the optimizer and state dict.
        for name, argument in getattr(operator, "keywords", {}).items():
            if isinstance(argument, nn.Module):
                self.add_module(name, argument)
        self.strides = None if strides is None else [float(stride) for stride in strides]

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pools all boxes.

        Args:
            x: feature maps (N, C, H_l, W_l) by name; C is the same for all.
            boxes: for each of the N images (L_i, 4) `x1, y1, x2, y2` in image pixels.
            image_shapes: `(height, width)` of each image before padding.

        Returns:
            (sum of L_i, C', PH, PW), in the order of `boxes`.

        Raises:
            KeyError: if none, or not all, of `featmap_names` are in `x`.
            ValueError: if the number of lists of boxes is not the number of images.
        """
        features, rois, scales = self._inputs(x, boxes, image_shapes)
        if len(features) == 1:
            return self._pool(features[0], rois, scales[0])

        levels = assign_levels(
            rois[:, 1:], len(features), -math.log2(scales[0]), self.canonical_scale, self.canonical_level
        )
        # Empty levels are pooled too: they keep every map in the graph, which DDP needs.
        picked = [torch.nonzero(levels == level).squeeze(1) for level in range(len(features))]
        pooled = [
            self._pool(feature, rois[rows], scale)
            for feature, rows, scale in zip(features, picked, scales, strict=True)
        ]
        return _Reunite.apply(picked, *pooled)

    def _inputs(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], Tensor, list[float]]:
        """The maps to pool from, the RoIs (K, 5) of all images, and the spatial scale of each map."""
        missing = [name for name in self.featmap_names if name not in x]
        if missing:
            raise KeyError(f"feature maps {missing} are not in the input, which has {list(x)}")
        features = [x[name] for name in self.featmap_names]
        if len(boxes) != features[0].shape[0]:
            raise ValueError(
                f"boxes must hold one (L, 4) tensor per image: got {len(boxes)} for {features[0].shape[0]} images"
            )
        index = torch.cat([box.new_full((len(box), 1), i) for i, box in enumerate(boxes)])
        rois = torch.cat([index, torch.cat(boxes)], dim=1)
        return features, rois, self._scales(features, image_shapes)

    def _pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        return self.operator(feature, rois, output_size=self.output_size, spatial_scale=scale)

    def _scales(self, features: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[float]:
        if self.strides is not None:
            return [1 / stride for stride in self.strides]
        if not image_shapes:
            raise ValueError("image_shapes is empty, so the scales of the feature maps cannot be inferred")
        height = max(shape[0] for shape in image_shapes)
        return [2.0 ** round(math.log2(feature.shape[-2] / height)) for feature in features]

    def __repr__(self) -> str:
        operator = getattr(self.operator, "func", self.operator)
        keywords = getattr(self.operator, "keywords", {})
        name = getattr(operator, "__name__", repr(operator))
        arguments = "".join(f", {key}={value!r}" for key, value in keywords.items())
        return (
            f"{type(self).__name__}({name}{arguments}, featmap_names={self.featmap_names}, "
            f"output_size={self.output_size})"
        )


def multi_scale_roi_align(
    featmap_names: Sequence[str],
    output_size: int | Sequence[int],
    sampling_ratio: int,
    *,
    canonical_scale: int = 224,
    canonical_level: int = 4,
) -> RoIPooler:
    """A `RoIPooler` from the arguments of `torchvision.ops.MultiScaleRoIAlign`, which it replaces.

    Args:
        featmap_names: names of the feature maps to pool from, finest first.
        output_size: pooled size, an int or `(height, width)`, in bins.
        sampling_ratio: points per bin and axis; zero or less: as many as the bin has cells.
        canonical_scale: side in image pixels of a box that belongs to `canonical_level`.
        canonical_level: level, `log2(stride)`, of a box of that size.
    """
    operator = functools.partial(roi_align, sampling_ratio=sampling_ratio)
    return RoIPooler(
        featmap_names, output_size, operator, canonical_scale=canonical_scale, canonical_level=canonical_level
    )
