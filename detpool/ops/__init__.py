"""RoI pooling operators: tensors in, tensors out. Arguments, order and defaults are those of ``torchvision.ops``."""

from .backends import BackendError
from .pr_roi_pool import pr_roi_pool
from .ps_roi_pool import ps_roi_pool
from .roi_align import roi_align
from .roi_pool import roi_pool

__all__ = ["BackendError", "pr_roi_pool", "ps_roi_pool", "roi_align", "roi_pool"]
