"""What a reduction is given: the samples of every bin of every RoI."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from . import formulas
from .backends import reference
from .bins import Bins
from .inputs import checked, checks_values
from .layout import sum_dtype
from .sampling import SAMPLING, Points
from .spec import ROTATED, Spec
from .weighted_sum import weighted_sum
from .window_max import window_max


@dataclass(frozen=True)
class Samples:
    """The samples of every bin of every RoI; a reduction turns them into one number for each bin and channel."""

    maps: Sequence[Tensor]
    """features (N, C, H, W), one map or those of a pyramid"""
    rois: Tensor
    """(K, 5), in pixels"""
    levels: Tensor | None
    """(K,), the map of each RoI; None for one map"""
    offsets: Tensor | None
    """(K, 2, PH, PW), see :func:`~detpool.ops.weighted_sum.weighted_sum`"""
    spec: Spec
    backend: str | None
    parts: tuple[int, int] = (1, 1)
    """how many bins of ``spec`` along (y, x) make up a bin, where the axes have other numbers of points"""

    @property
    def size(self) -> tuple[int, int]:
        """(PH, PW), bins of the result."""
        return self.spec.output_size[0] // self.parts[0], self.spec.output_size[1] // self.parts[1]

    @property
    def features(self) -> Tensor:
        """The map (N, C, H, W).

        Raises:
            ValueError: If there are several: only "mean" and "max" pool from a pyramid at once.
        """
        if len(self.maps) > 1:
            raise ValueError("this reduction pools from one map at a time, not from the maps of a pyramid at once")
        return self.maps[0]

    def mean(self, features: Tensor | None = None) -> Tensor:
        """(K, C, PH, PW), the mean over each bin; of ``features`` in place of the operator's own if given."""
        maps = self.maps if features is None else [features]
        output = weighted_sum(maps, self.rois, self.levels, self.offsets, self.spec, self.backend)
        return output if self.parts == (1, 1) else avg_pool2d(output, self.parts)

    def max(self, features: Tensor | None = None) -> Tensor:
        """(K, C, PH, PW), the maximum over each bin, 0 for one without samples; of ``features`` if given.

        Raises:
            ValueError: If bins are deformable, or the sampling rule has no single values.
        """
        rule = SAMPLING[self.spec.sampling]
        if self.offsets is not None:
            raise ValueError("the maximum takes no deformable bins")
        if rule.windows is None and rule.points is None:
            reference.points_of(self.spec, *self.bins, self._lengths)
        maps = self.maps if features is None else [features]
        output = window_max(maps, self.rois, self.levels, self.spec, self.backend)
        return output if self.parts == (1, 1) else max_pool2d(output, self.parts)

    def sum(self) -> Tensor:
        """(K, C, PH, PW), the sum over cells or points, or the integral.

        Raises:
            ValueError: As :meth:`measure`.
        """
        # a sum may be representable in half precision where its mean, or the number of samples, is not
        total = self.mean(formulas.widened(self.features)) * self.measure()
        return total.to(self.features.dtype)

    def points(self, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every value of every bin, (K, C, PH, PW, G), and which of them exist, (K, 1, PH, PW, G).

        Raises:
            ValueError: If the sampling rule has no single values.
        """
        features = self.features if features is None else features
        spec, (rows, columns) = self.spec, self.size
        if spec.sampling == "points" and spec.ratio > 0 and self.offsets is None:
            # point t of a bin is the one point of the t-th of equal parts of the bin
            size = (spec.output_size[0] * spec.ratio, spec.output_size[1] * spec.ratio)
            single = replace(spec, output_size=size, ratio=1)
            grid = weighted_sum([features], self.rois, self.levels, None, single, self.backend)
            grid = grid.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).transpose(3, 4).flatten(4)
            return grid, torch.ones((), dtype=torch.bool, device=grid.device).expand(len(grid), 1, *grid.shape[2:])
        if spec.bins == ROTATED:
            raise ValueError("the single points of rotated boxes need sampling 'points' and a positive sampling_ratio")
        y, x = self._points
        grid = reference.grid_of_points(features, self._image, y, x, spec.groups)
        exists = y.exists[:, :, 0, None, :, None] & x.exists[:, None, :, 0, None]
        return grid, exists.flatten(3)[:, None]

    def measure(self) -> Tensor:
        """(K, 1, PH, PW): what the mean is over: numbers of samples, or the area of the bin for an integral.

        Raises:
            ValueError: If the sampling rule does not say.
        """
        measure = SAMPLING[self.spec.sampling].measure
        if measure is None:
            raise ValueError("this reduction needs a sampling rule that counts its samples (`measure`)")
        y, x = (measure(axis, n, self.spec.ratio) for axis, n in zip(self.bins, self._lengths, strict=True))
        product = (y * x.transpose(1, 2)).to(sum_dtype(self.features.dtype))
        return product.expand(-1, *self.size)[:, None] * prod(self.parts)

    def by_bin(self, values: Tensor) -> Tensor:
        """Values of images and channels (N, C, 1, 1) as values of bins: (K, C', 1, 1), (K, C', PH, PW) with groups."""
        chosen = values[self._image]
        rows, columns = self.spec.groups
        if (rows, columns) == (1, 1):
            return chosen
        chosen = chosen.reshape(len(chosen), values.shape[1] // (rows * columns), rows, columns)
        height, width = self.size
        return chosen.repeat_interleave(height // rows, dim=2).repeat_interleave(width // columns, dim=3)

    @cached_property
    def bins(self) -> tuple[Bins, Bins]:
        """The bins of both axes, as (y, x), in feature cells.

        Raises:
            ValueError: If boxes are rotated, which have no bins along an axis.
        """
        if self.spec.bins == ROTATED:
            raise ValueError("rotated boxes have no upright bins: only their mean and maximum are defined")
        return reference.bins_of(self.spec, self.rois, self.offsets, self.spec.scales[0], self._lengths)

    @cached_property
    def _points(self) -> tuple[Points, Points]:
        rois = self.rois
        if checks_values(rois.device):
            rois = checked(rois, self.offsets, self.features.shape[0])
        bins = reference.bins_of(self.spec, rois, self.offsets, self.spec.scales[0], self._lengths)
        return reference.points_of(self.spec, *bins, self._lengths)

    @property
    def _image(self) -> Tensor:
        # an image that is not there gets this far only where values are not inspected, and its mean is NaN anyway
        return self.rois[:, 0].detach().nan_to_num(0).clamp(0, max(0, self.features.shape[0] - 1)).to(torch.int64)

    @property
    def _lengths(self) -> tuple[int, int]:
        return self.features.shape[2], self.features.shape[3]
