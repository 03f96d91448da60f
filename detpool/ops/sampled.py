"""RoIs with bins and a sampling rule, ready to be reduced."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .axes import Bins, Taps, parts
from .backends import triton
from .bin_sum import bin_sum
from .sampling import Sampling
from .separable import separable_sum
from .window_max import window_max


class Sampled:
    """The samples of every bin of every RoI; a reduction turns them into one number for each bin and channel."""

    def __init__(
        self,
        features: Tensor,
        batch: Tensor,
        y: Bins,
        x: Bins,
        sampling: Sampling,
        *,
        ratio: int = -1,
        groups: tuple[int, int] = (1, 1),
        lengths: tuple[int, int] | None = None,
        backend: str | None = None,
    ) -> None:
        """Bins of both axes in feature cells, the rule that samples them, and its sampling ratio.

        Rows and columns beyond ``lengths`` are not read; default: all are.
        """
        self.features = features
        self.lengths = (features.shape[2], features.shape[3]) if lengths is None else lengths
        self._batch, self.y, self.x = batch, y, x
        self.sampling, self.ratio, self.groups, self._backend = sampling, ratio, groups, backend
        self._means: tuple[Taps, Taps] | None = None

    def mean(self, features: Tensor | None = None) -> Tensor:
        """The mean over each bin, of ``features`` of the same shape in place of the operator's own if given."""
        features = self.features if features is None else features
        if self.sampling.triton is not None and self._backend in (None, "triton"):
            tensors = {"features": features, "batch": self._batch}
            if not triton.reasons_against("bin_sum", tensors):
                return bin_sum(
                    features,
                    self._batch,
                    self.y,
                    self.x,
                    lengths=self.lengths,
                    rule=self.sampling.triton,
                    ratio=self.ratio,
                    groups=self.groups,
                )
        if self._means is None:
            self._means = self._taps(self.y, self.lengths[0]), self._taps(self.x, self.lengths[1]).transposed()
        y, x = self._means
        return separable_sum(features, self._batch, y, x, groups=self.groups, backend=self._backend)

    def measure(self) -> Tensor:
        """(K, 1, PH, PW): what the mean is over: numbers of samples, or the area of the bin for an integral.

        Raises:
            ValueError: the sampling rule does not say.
        """
        if self.sampling.measure is None:
            raise ValueError("this reduction needs a sampling rule that counts its samples (`measure`)")
        y = self.sampling.measure(self.y, self.lengths[0], self.ratio)
        x = self.sampling.measure(self.x, self.lengths[1], self.ratio).transpose(1, 2)
        bins = (self.y.lower.shape[1], self.x.lower.shape[1])
        return (y * x).to(self._dtype()).expand(-1, *bins)[:, None]

    def by_bin(self, values: Tensor) -> Tensor:
        """Values of images and channels (N, C, 1, 1) as values of bins: (K, C', 1, 1), (K, C', PH, PW) with groups."""
        # -1, a RoI that is not valid on a device whose values are not inspected: its mean is NaN anyway.
        chosen = values[self._batch.clamp(min=0)]
        if self.groups == (1, 1):
            return chosen
        rows, columns = self.groups
        chosen = chosen.reshape(len(chosen), values.shape[1] // (rows * columns), rows, columns)
        bins = (self.y.lower.shape[1], self.x.lower.shape[1])
        return chosen.repeat_interleave(bins[0] // rows, dim=2).repeat_interleave(bins[1] // columns, dim=3)

    def max(self, features: Tensor | None = None) -> Tensor:
        """The maximum over each bin, 0 for one without samples; of ``features`` if given."""
        features = self.features if features is None else features
        if self.sampling.windows is not None:
            return window_max(features, self._batch, *self._windows(), groups=self.groups, backend=self._backend)
        values, exists, size = self._grid(features)
        if exists is None:
            return max_pool2d(values, size)
        maximum = max_pool2d(values.masked_fill(~exists, -torch.inf), size)
        some = max_pool2d(exists.to(torch.float32), size) > 0
        return maximum.where(some, 0.0)

    def points(self, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every value of every bin: (K, C, PH, PW, G), and which of them exist, (K, 1, PH, PW, G).

        Raises:
            ValueError: the sampling rule has no single values.
        """
        values, exists, (rows, columns) = self._grid(self.features if features is None else features)
        if exists is None:
            exists = torch.ones((), dtype=torch.bool, device=values.device).expand(len(values), 1, *values.shape[2:])
        bins = (self.y.lower.shape[1], self.x.lower.shape[1])

        def by_bin(grid: Tensor) -> Tensor:
            return grid.unflatten(3, (bins[1], columns)).unflatten(2, (bins[0], rows)).transpose(3, 4).flatten(4)

        return by_bin(values), by_bin(exists)

    def _grid(self, features: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """The points of all bins as one image a RoI.

        (K, C, PH GY, PW GX), the values; (K, 1, PH GY, PW GX), whether they exist, None if all do; and (GY, GX), the
        points of a bin.
        """
        if self.sampling.points is None:
            raise ValueError(
                "this reduction needs the single values of a bin (sampling 'points'; the maximum also takes 'cells'), "
                "and this sampling rule yields only their mean"
            )
        if self.sampling.divides and self.ratio > 0:
            size = (self.ratio, self.ratio)
            single = Sampled(
                features,
                self._batch,
                parts(self.y, *size),
                parts(self.x, *size),
                self.sampling,
                ratio=1,
                groups=self.groups,
                lengths=self.lengths,
                backend=self._backend,
            )
            return single.mean(), None, size
        y = self.sampling.points(self.y, self.lengths[0], self.ratio)
        x = self.sampling.points(self.x, self.lengths[1], self.ratio)
        _, _, across, rows = y.exists.shape
        columns = x.exists.shape[3]
        # One bin for each point: those of (i, s) and (j, t) at row i * rows + s and column j * columns + t.
        y_taps = Taps(*(_by_point(t, across, columns) for t in (y.index, y.weight)))
        x_taps = Taps(*(_by_point(t, across, rows).transpose(1, 2) for t in (x.index, x.weight)))
        values = separable_sum(features, self._batch, y_taps, x_taps, groups=self.groups, backend=self._backend)
        exists_y = _by_point(y.exists[..., None], across, columns)[..., 0]
        exists_x = _by_point(x.exists[..., None], across, rows)[..., 0].transpose(1, 2)
        return values, (exists_y & exists_x)[:, None], (rows, columns)

    def _windows(self) -> tuple[Tensor, Tensor]:
        assert self.sampling.windows is not None
        y = self.sampling.windows(self.y, self.lengths[0], self.ratio)
        x = self.sampling.windows(self.x, self.lengths[1], self.ratio)
        if y.shape[2] > 1 or x.shape[2] > 1:
            raise ValueError("the maximum over cells does not take deformable bins: sample points instead")
        return y[:, :, 0], x[:, :, 0]

    def _taps(self, bins: Bins, length: int) -> Taps:
        taps = self.sampling.taps(bins, length, self.ratio)
        return Taps(taps.index, taps.weight.to(self._dtype()))

    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.features.dtype == torch.float64 else torch.float32


def _by_point(taps: Tensor, across: int, points_across: int) -> Tensor:
    """(K, P, J, G, ...) as (K, P * G, J', ...), J' being the points of the other axis if there are J > 1 bins of it."""
    taps = taps.transpose(2, 3).flatten(1, 2)
    return taps.repeat_interleave(points_across, dim=2) if across > 1 else taps
