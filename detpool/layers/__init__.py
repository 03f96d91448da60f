"""Pooling layers for feature maps (N, C, H, W) and tokens (N, L, C), other than RoI pooling.

Those that PyTorch has are PyTorch's own; ``docs/layers.md`` lists all with their formulas.
"""

from torch.nn import AdaptiveAvgPool2d, AdaptiveMaxPool2d, AvgPool2d, LPPool2d, MaxPool2d

from .blur import BlurPool2d, MaxBlurPool2d
from .context import ASPP, LocalResponseNorm, SpatialPyramidContext2d
from .fractional import FractionalMaxPool2d, FractionalRegionPool2d
from .learned import GatedPool2d, LearnedMixedPool2d, LeNetSubsampling, StridedConv2d, TreePool2d
from .reductions import (
    L2Pool2d,
    LpPool2d,
    MixedPool2d,
    SoftmaxPool2d,
    StochasticPool2d,
    SumPool2d,
    lp_pool2d,
    mean_pool2d,
    mixed_pool2d,
    softmax_pool2d,
    stochastic_pool2d,
    sum_pool2d,
)
from .tokens import (
    AttentionTokenPool,
    ClsTokenPool,
    LastTokenPool,
    LearnedMeanTokenPool,
    MaxTokenPool,
    MeanTokenPool,
    WeightedMeanTokenPool,
    to_tokens,
)
from .windows import (
    AdaptiveTiledPool2d,
    GlobalLpPool2d,
    GlobalPool2d,
    SpatialPyramidPool2d,
    TiledPool2d,
    tiled_pool2d,
)

__all__ = [
    "ASPP",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AdaptiveTiledPool2d",
    "AttentionTokenPool",
    "AvgPool2d",
    "BlurPool2d",
    "ClsTokenPool",
    "FractionalMaxPool2d",
    "FractionalRegionPool2d",
    "GatedPool2d",
    "GlobalLpPool2d",
    "GlobalPool2d",
    "L2Pool2d",
    "LPPool2d",
    "LastTokenPool",
    "LeNetSubsampling",
    "LearnedMeanTokenPool",
    "LearnedMixedPool2d",
    "LocalResponseNorm",
    "LpPool2d",
    "MaxBlurPool2d",
    "MaxPool2d",
    "MaxTokenPool",
    "MeanTokenPool",
    "MixedPool2d",
    "SoftmaxPool2d",
    "SpatialPyramidContext2d",
    "SpatialPyramidPool2d",
    "StochasticPool2d",
    "StridedConv2d",
    "SumPool2d",
    "TiledPool2d",
    "TreePool2d",
    "WeightedMeanTokenPool",
    "lp_pool2d",
    "mean_pool2d",
    "mixed_pool2d",
    "softmax_pool2d",
    "stochastic_pool2d",
    "sum_pool2d",
    "tiled_pool2d",
    "to_tokens",
]
