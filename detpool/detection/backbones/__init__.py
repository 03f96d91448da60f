"""Bodies: image to feature maps at several strides. `FPNBackbone` puts a feature pyramid on any of them."""

from detpool.detection.backbones.body import Body, FPNBackbone
from detpool.detection.backbones.resnet import resnet
from detpool.detection.backbones.small import SmallCNN
from detpool.detection.backbones.timm import lite0, timm_body

__all__ = ["Body", "FPNBackbone", "SmallCNN", "lite0", "resnet", "timm_body"]
