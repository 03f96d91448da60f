"""Heads that turn pooled RoIs into features and predictions."""

from detpool.detection.heads.box import (
    ClassAgnosticPredictor,
    ClassMapHead,
    ClassMapPredictor,
    ConvFCHead,
    ConvHead,
    FlattenHead,
    PooledHead,
    StageHead,
    TokenHead,
    build_box_predictor,
    build_predictor,
)
from detpool.detection.heads.context import ImageContext
from detpool.detection.heads.position_sensitive import LargeSeparableConv, Vote, VotePredictor

__all__ = [
    "ClassAgnosticPredictor",
    "ClassMapHead",
    "ClassMapPredictor",
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
    "build_box_predictor",
    "build_predictor",
]
