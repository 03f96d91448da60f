"""Pooling of each RoI with any operator from the pyramid level that fits its size."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function
from torchvision.ops import MultiScaleRoIAlign

from detpool.ops import PyramidRoIs, assign_levels, pools_pyramids, roi_align
from detpool.ops.inputs import find_proxies, join_images, pair
from detpool.ops.layout import sum_dtype
from detpool.ops.modules import RoIModule

Operator = Callable[..., Tensor]


class RoIPooler(MultiScaleRoIAlign):
    """Pools each RoI with any operator from the pyramid level that fits its size.

    It is called like `torchvision.ops.MultiScaleRoIAlign` and is a subclass of it, so that torchvision's detectors
    accept it as their `box_roi_pool`; with `operator=ops.roi_align` the results are the same.

    Args:
        featmap_names: names of the feature maps to pool from, finest first; other maps in the input are ignored.
        output_size: pooled size, an int or `(height, width)`, in bins.
        operator: `operator(features, rois, output_size=..., spatial_scale=...)`, with `features` (N, C, H, W) and
            `rois` (K, 5) `(batch, x1, y1, x2, y2)` in image pixels, returning (K, C', PH, PW): a function of
            `detpool.ops`, a `functools.partial` of one (modules among its arguments are trained), or a module. A module
            of `detpool.ops` (`RoIAlign`, ...) must have the pooler's `output_size`; its `spatial_scale` is ignored,
            since the scales are those of the maps.
        strides: stride in image pixels of each named map. Default: powers of two inferred from the sizes of the maps
            and of the largest image, as torchvision does.
        canonical_scale: side in image pixels of a box that belongs to `canonical_level` (default 224).
        canonical_level: level, `log2(stride)`, of a box of that size (default 4, that is stride 16). Each box is pooled
            from the coarsest map whose own level is not above the box's, `canonical_level + log2(side /
            canonical_scale)`: FPN's equation 1 where strides double from map to map.

    Raises:
        ValueError: If `featmap_names` is empty, `strides` has another length than `featmap_names` or a value that is
            not positive, `canonical_scale` is not positive, `operator` is a module of another output size, or a partial
            that sets `output_size` or `spatial_scale`.
        TypeError: If `operator` is a module that cannot be called in this way.
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
        self.operator = operator = _without_sizes(operator, size)
        # A partial hides the modules among its arguments (a learned reduction) from the optimizer and state dict.
        for name, argument in getattr(operator, "keywords", {}).items():
            if isinstance(argument, nn.Module):
                self.add_module(name, argument)
        self.strides = None if strides is None else [float(stride) for stride in strides]

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pools all boxes.

        Args:
            x: feature maps (N, C, H_l, W_l) by name; C is the same for all.
            boxes: for each of the N images a tensor (L_i, 4) of `x1, y1, x2, y2` in image pixels.
            image_shapes: `(height, width)` of each image before padding.

        Returns:
            (sum of L_i, C', PH, PW), in the order of `boxes`.

        Raises:
            KeyError: If one of `featmap_names` is not in `x`.
            ValueError: If the number of box tensors is not the number of images, or `image_shapes` is empty although it
                is needed to infer strides.
        """
        traced = find_proxies(x, boxes)
        if traced:
            return handle_torch_function(self.forward, traced, x, boxes, image_shapes)
        features, rois, scales = self._inputs(x, boxes, image_shapes)
        if len(features) == 1:
            return self._pool(features[0], rois, scales[0])
        levels = self.find_levels(rois[:, 1:], scales)
        if pools_pyramids(self.operator):
            return self._pool(features, PyramidRoIs(rois, levels), scales)
        # Levels without RoIs are pooled too, to keep every map in the graph, which DDP needs.
        rows = [torch.nonzero(levels == level).squeeze(1) for level in range(len(features))]
        parts = [self._pool(f, rois[k], scale) for f, k, scale in zip(features, rows, scales, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _inputs(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], Tensor, list[float]]:
        """Returns the maps to pool from, the RoIs (K, 5) of all images, and the spatial scale of each map."""
        missing = [name for name in self.featmap_names if name not in x]
        if missing:
            raise KeyError(f"feature maps {missing} are not in the input, which has {list(x)}")
        features = [x[name] for name in self.featmap_names]
        if len(boxes) != features[0].shape[0]:
            raise ValueError(
                f"boxes must hold one (L, 4) tensor per image: got {len(boxes)} for {features[0].shape[0]} images"
            )
        dtype = sum_dtype(features[0].dtype)
        rois = join_images(boxes, dtype) if boxes else features[0].new_zeros((0, 5), dtype=dtype)
        return features, rois, self._scales(features, image_shapes)

    def find_levels(self, boxes: Tensor, scales: Sequence[float]) -> Tensor:
        """Returns the index of the map, int64 (K,), that each box is pooled from.

        Args:
            boxes: (K, 4) in image pixels.
            scales: spatial scale of each map, finest first.
        """
        finest, *coarser = (-math.log2(scale) for scale in scales)
        canonical = self.canonical_scale, self.canonical_level
        if all(abs(level - finest - i) < 1e-6 for i, level in enumerate(coarser, 1)):
            return assign_levels(boxes, len(scales), finest, *canonical)
        # Strides do not double from level to level: count the levels that each box reaches.
        reached = [assign_levels(boxes, 2, level - 1, *canonical) for level in coarser]
        return torch.stack(reached).sum(0)

    def _pool(self, features: Any, rois: Any, scale: Any) -> Tensor:
        """Pools RoIs (K, 5) from one map with its scale, or `PyramidRoIs` from all maps with their scales."""
        return self.operator(features, rois, output_size=self.output_size, spatial_scale=scale)

    def _scales(self, features: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[float]:
        if self.strides is not None:
            return [1 / stride for stride in self.strides]
        if not image_shapes:
            if features[0].shape[0] == 0:
                return [1.0] * len(features)  # nothing to pool
            raise ValueError("image_shapes is empty, so the scales of the feature maps cannot be inferred")
        # Inferred from the longer side, where rounding to whole cells matters less.
        sides = [max(shape[axis] for shape in image_shapes) for axis in (0, 1)]
        axis = 0 if sides[0] >= sides[1] else 1
        return [2.0 ** round(math.log2(feature.shape[axis - 2] / sides[axis])) for feature in features]

    def __repr__(self) -> str:
        operator = getattr(self.operator, "func", self.operator)
        keywords = getattr(self.operator, "keywords", {})
        name = getattr(operator, "__name__", repr(operator))
        arguments = "".join(f", {key}={value!r}" for key, value in keywords.items())
        return (
            f"{type(self).__name__}({name}{arguments}, featmap_names={self.featmap_names}, "
            f"output_size={self.output_size})"
        )


def _without_sizes(operator: Operator, output_size: int | tuple[int, ...]) -> Operator:
    """Returns an operator that takes its sizes from the pooler: for a module of `detpool.ops`, its function.

    Raises:
        ValueError, TypeError: See `RoIPooler`.
    """
    if not isinstance(operator, nn.Module):
        if sizes := {"output_size", "spatial_scale"} & getattr(operator, "keywords", {}).keys():
            raise ValueError(
                f"operator has {', '.join(sorted(sizes))} of its own, which it gets from the pooler: leave that out"
            )
        return operator
    if isinstance(operator, RoIModule):
        own, pooler = pair(operator.output_size, "operator.output_size"), pair(output_size, "output_size")
        if own != pooler:
            raise ValueError(f"output_size is {output_size}, and that of the operator {operator} another")
        return operator.operator
    arguments = inspect.signature(operator.forward).parameters
    if "output_size" not in arguments and all(a.kind is not a.VAR_KEYWORD for a in arguments.values()):
        raise TypeError(
            f"operator must be called as operator(features, rois, output_size=..., spatial_scale=...), got a module "
            f"that takes ({', '.join(arguments)}): {operator}"
        )
    return operator


def multi_scale_roi_align(
    featmap_names: Sequence[str],
    output_size: int | Sequence[int],
    sampling_ratio: int,
    *,
    canonical_scale: int = 224,
    canonical_level: int = 4,
) -> RoIPooler:
    """Builds a `RoIPooler` from the arguments of `torchvision.ops.MultiScaleRoIAlign`, as a replacement.

    Args:
        featmap_names: names of the feature maps to pool from, finest first.
        output_size: pooled size, an int or `(height, width)`, in bins.
        sampling_ratio: sample points per bin and axis; zero or less for as many as the bin has cells.
        canonical_scale: side in image pixels of a box that belongs to `canonical_level`.
        canonical_level: level, `log2(stride)`, of a box of that size.
    """
    operator = functools.partial(roi_align, sampling_ratio=sampling_ratio)
    return RoIPooler(
        featmap_names, output_size, operator, canonical_scale=canonical_scale, canonical_level=canonical_level
    )
