"""The operators as modules, with the constructors of ``torchvision.ops`` where it has them."""

from collections.abc import Sequence

from torch import Tensor, nn

from .inputs import Boxes
from .pr_roi_pool import pr_roi_pool
from .ps_roi_align import ps_roi_align
from .ps_roi_pool import ps_roi_pool
from .roi_align import roi_align
from .roi_pool import roi_pool

Size = int | Sequence[int]


class RoIPool(nn.Module):
    """See :func:`detpool.ops.roi_pool`."""

    def __init__(self, output_size: Size, spatial_scale: float) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class RoIAlign(nn.Module):
    """See :func:`detpool.ops.roi_align`."""

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int, aligned: bool = False) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class PSRoIPool(nn.Module):
    """See :func:`detpool.ops.ps_roi_pool`."""

    def __init__(self, output_size: Size, spatial_scale: float, *, convention: str = "torchvision") -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.convention = output_size, spatial_scale, convention

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale, convention=self.convention)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, convention={self.convention!r}"


class PSRoIAlign(nn.Module):
    """See :func:`detpool.ops.ps_roi_align`."""

    def __init__(self, output_size: Size, spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.sampling_ratio = output_size, spatial_scale, sampling_ratio

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}"
        )


class PrRoIPool(nn.Module):
    """See :func:`detpool.ops.pr_roi_pool`."""

    def __init__(self, output_size: Size, spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return pr_roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"
