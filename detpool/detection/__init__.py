"""Two-stage detectors based on torchvision's detection package, with the poolers and heads that it lacks."""

from detpool.extras import require

require()

from detpool.detection.cascade import CascadeHeads, cascade_rcnn
from detpool.detection.detector import TwoStageDetector
from detpool.detection.faster_rcnn import faster_rcnn_c4, faster_rcnn_c5, faster_rcnn_fpn
from detpool.detection.iou_heads import IoUHeads
from detpool.detection.iou_net import iou_net
from detpool.detection.proposals import GivenProposals, JitteredProposals, ProposalNetwork
from detpool.detection.rfcn import light_head_rcnn, rfcn
from detpool.detection.roi_heads import TwoStageHeads

__all__ = [
    "CascadeHeads",
    "GivenProposals",
    "IoUHeads",
    "JitteredProposals",
    "ProposalNetwork",
    "TwoStageDetector",
    "TwoStageHeads",
    "cascade_rcnn",
    "faster_rcnn_c4",
    "faster_rcnn_c5",
    "faster_rcnn_fpn",
    "iou_net",
    "light_head_rcnn",
    "rfcn",
]
