"""RoI pooling operators: tensors in, tensors out. Arguments, order and defaults are those of ``torchvision.ops``."""

from . import reductions
from .backends import BackendError
from .bins import Bins
from .deform_roi_pool import deform_ps_roi_pool, deform_roi_pool
from .inputs import PyramidRoIs
from .levels import assign_levels
from .modules import PrRoIPool, PSRoIAlign, PSRoIPool, RoIAlign, RoIPool
from .pool import pool, pools_pyramids, record_samples, register_reduction
from .pr_roi_pool import pr_roi_pool
from .ps_roi_align import ps_roi_align
from .ps_roi_pool import ps_roi_pool
from .roi_align import roi_align
from .roi_align_rotated import roi_align_rotated
from .roi_pool import roi_pool
from .roi_pool_rotated import roi_pool_rotated
from .roi_warp import roi_warp
from .samples import Samples
from .sampling import Points, Sampling, Taps, register_sampling
from .spp import spp

__all__ = [
    "BackendError",
    "Bins",
    "PSRoIAlign",
    "PSRoIPool",
    "Points",
    "PrRoIPool",
    "PyramidRoIs",
    "RoIAlign",
    "RoIPool",
    "Samples",
    "Sampling",
    "Taps",
    "assign_levels",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "pool",
    "pools_pyramids",
    "pr_roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "record_samples",
    "reductions",
    "register_reduction",
    "register_sampling",
    "roi_align",
    "roi_align_rotated",
    "roi_pool",
    "roi_pool_rotated",
    "roi_warp",
    "spp",
]
