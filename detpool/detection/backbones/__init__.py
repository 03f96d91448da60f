"""Bodies compute feature maps at several strides; backbones of detectors make a pyramid or a single map of them."""

from detpool.detection.backbones.body import Body, StagedBody
from detpool.detection.backbones.maps import FPNBackbone, SingleMapBackbone
from detpool.detection.backbones.resnet import resnet
from detpool.detection.backbones.small import SmallCNN
from detpool.detection.backbones.timm import lite0, timm_body
from detpool.detection.backbones.torchvision import torchvision_body
from detpool.detection.backbones.vit import vit

__all__ = [
    "Body",
    "FPNBackbone",
    "SingleMapBackbone",
    "SmallCNN",
    "StagedBody",
    "lite0",
    "resnet",
    "timm_body",
    "torchvision_body",
    "vit",
]
