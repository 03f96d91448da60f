"""Modules with which detectors pool RoIs: they apply operators of `detpool.ops` to pyramids of feature maps."""

from detpool.ops import assign_levels
from detpool.poolers.all_levels import AllLevelsPooler
from detpool.poolers.deform import DeformRoIPooler
from detpool.poolers.roi_pooler import RoIPooler, multi_scale_roi_align
from detpool.poolers.spatial_pyramid import SpatialPyramidPooler

__all__ = [
    "AllLevelsPooler",
    "DeformRoIPooler",
    "RoIPooler",
    "SpatialPyramidPooler",
    "assign_levels",
    "multi_scale_roi_align",
]
