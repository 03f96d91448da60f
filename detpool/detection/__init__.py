"""Detectors on torchvision's detection package, with the poolers and heads it lacks."""

from detpool.detection.faster_rcnn import faster_rcnn_fpn

__all__ = ["faster_rcnn_fpn"]
