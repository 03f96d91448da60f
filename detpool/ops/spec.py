"""The static description of a pooling: all that is not a tensor."""

from dataclasses import dataclass, field
from functools import lru_cache

ROTATED = "rotated"
"""The bins of rotated boxes, which are no rule of one axis: only the points of RoIAlign are sampled in them."""


@dataclass(frozen=True)
class Spec:
    """How RoIs are pooled.

    PyTorch's operators take numbers and strings, not objects, so a description travels through them as ``text``.
    """

    bins: str
    """name of a bin rule, a key of :data:`detpool.ops.bins.BINS`, or :data:`ROTATED`"""
    sampling: str
    """name of a sampling rule, a key of :data:`detpool.ops.sampling.SAMPLING`"""
    output_size: tuple[int, int]
    """(PH, PW), bins"""
    scales: tuple[float, ...]
    """feature cells per pixel of box coordinates, for each map"""
    ratio: int = -1
    """points per bin and axis; zero or less: as many as the bin has cells, rounded up"""
    groups: tuple[int, int] = (1, 1)
    """(GH, GW), dividing (PH, PW): the bins form GH x GW blocks; those of block (u, v) read input channel
    ``(c GH + u) GW + v`` for output channel c. (1, 1): all bins read all channels; (PH, PW): position-sensitive."""

    group_count: int = field(init=False, compare=False)
    """GH GW"""
    text: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        (rows, columns), (group_rows, group_columns) = self.output_size, self.groups
        scales = ",".join([f"{scale}" for scale in self.scales])
        text = f"{self.bins};{self.sampling};{rows},{columns};{scales};{self.ratio};{group_rows},{group_columns}"
        object.__setattr__(self, "group_count", group_rows * group_columns)
        object.__setattr__(self, "text", text)

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(text: str) -> "Spec":
        """The description that was written as ``text``."""
        bins, sampling, size, scales, ratio, groups = text.split(";")
        (rows, columns), (group_rows, group_columns) = (map(int, pair.split(",")) for pair in (size, groups))
        numbers = tuple(float(scale) for scale in scales.split(","))
        return Spec(bins, sampling, (rows, columns), numbers, int(ratio), (group_rows, group_columns))
