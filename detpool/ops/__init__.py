"""RoI pooling operators: tensors in, tensors out. Arguments, order and defaults are those of ``torchvision.ops``."""

from . import reductions
from .backends import BackendError
from .deform_roi_pool import deform_ps_roi_pool, deform_roi_pool
from .general import pool, register_reduction, register_sampling
from .modules import PrRoIPool, PSRoIAlign, PSRoIPool, RoIAlign, RoIPool
from .pr_roi_pool import pr_roi_pool
from .ps_roi_align import ps_roi_align
from .ps_roi_pool import ps_roi_pool
from .roi_align import roi_align
from .roi_align_rotated import roi_align_rotated
from .roi_pool import roi_pool
from .roi_warp import roi_warp
from .sampling import Sampling
from .spp import spp

__all__ = [
    "BackendError",
    "PSRoIAlign",
    "PSRoIPool",
    "PrRoIPool",
    "RoIAlign",
    "RoIPool",
    "Sampling",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "pool",
    "pr_roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "reductions",
    "register_reduction",
    "register_sampling",
    "roi_align",
    "roi_align_rotated",
    "roi_pool",
    "roi_warp",
    "spp",
]
