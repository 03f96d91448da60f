"""Heads: from pooled RoIs to what is predicted of them."""

from detpool.detection.heads.box import ConvHead, FlattenHead, PooledHead, StageHead, TokenHead
from detpool.detection.heads.context import ImageContext
from detpool.detection.heads.position_sensitive import LargeSeparableConv, Vote, VotePredictor

__all__ = [
    "ConvHead",
    "FlattenHead",
    "ImageContext",
    "LargeSeparableConv",
    "PooledHead",
    "StageHead",
    "TokenHead",
    "Vote",
    "VotePredictor",
]
