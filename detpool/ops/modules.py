"""The operators as modules, with the constructors of ``torchvision.ops`` where it has them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .inputs import Boxes
from .pr_roi_pool import pr_roi_pool
from .ps_roi_align import ps_roi_align
from .ps_roi_pool import ps_roi_pool
from .roi_align import roi_align
from .roi_pool import roi_pool

Size = int | Sequence[int]


class RoIModule(nn.Module):
    """A function of this package with its settings.

    Args:
        function: called as ``function(input, rois, output_size, spatial_scale, **settings)``.
        output_size, spatial_scale: see :func:`detpool.ops.pool`.
        settings: further arguments of the function, which become attributes too.
    """

    def __init__(
        self, function: Callable[..., Tensor], output_size: Size, spatial_scale: float, **settings: Any
    ) -> None:
        super().__init__()
        self.function, self.settings = function, tuple(settings)
        self.output_size, self.spatial_scale = output_size, spatial_scale
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def operator(self) -> partial[Tensor]:
        """The function with its settings but without sizes, for callers that have those: the poolers of detectors."""
        return partial(self.function, **{name: getattr(self, name) for name in self.settings})

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return self.operator(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        settings = {"output_size": self.output_size, "spatial_scale": self.spatial_scale, **self.operator.keywords}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


class RoIPool(RoIModule):
    """See :func:`detpool.ops.roi_pool`."""

    def __init__(self, output_size: Size, spatial_scale: float) -> None:
        super().__init__(roi_pool, output_size, spatial_scale)


class RoIAlign(RoIModule):
    """See :func:`detpool.ops.roi_align`."""

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int, aligned: bool = False) -> None:
        super().__init__(roi_align, output_size, spatial_scale, sampling_ratio=sampling_ratio, aligned=aligned)


class PSRoIPool(RoIModule):
    """See :func:`detpool.ops.ps_roi_pool`."""

    def __init__(self, output_size: Size, spatial_scale: float, *, convention: str = "torchvision") -> None:
        super().__init__(ps_roi_pool, output_size, spatial_scale, convention=convention)


class PSRoIAlign(RoIModule):
    """See :func:`detpool.ops.ps_roi_align`."""

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__(ps_roi_align, output_size, spatial_scale, sampling_ratio=sampling_ratio)


class PrRoIPool(RoIModule):
    """See :func:`detpool.ops.pr_roi_pool`."""

    def __init__(
        self,
        output_size: Size,
        spatial_scale: float = 1.0,
        *,
        aligned: bool = False,
        position_sensitive: bool = False,
    ) -> None:
        super().__init__(
            pr_roi_pool, output_size, spatial_scale, aligned=aligned, position_sensitive=position_sensitive
        )
