"""Heads: from pooled RoIs to what is predicted of them."""

from detpool.detection.heads.box import (
    ClassAgnosticPredictor,
    ConvFCHead,
    ConvHead,
    FlattenHead,
    PooledHead,
    StageHead,
    TokenHead,
    build_predictor,
)
from detpool.detection.heads.context import ImageContext
from detpool.detection.heads.position_sensitive import LargeSeparableConv, Vote, VotePredictor

__all__ = [
    "ClassAgnosticPredictor",
    "ConvFCHead",
    "ConvHead",
    "FlattenHead",
    "ImageContext",
    "LargeSeparableConv",
    "PooledHead",
    "StageHead",
    "TokenHead",
    "Vote",
    "VotePredictor",
    "build_predictor",
]
