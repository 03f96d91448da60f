"""Detection metrics (COCO, VOC), result files and pictures."""

from detpool.extras import require

require()

from detpool.evaluation.coco import CocoEvaluator
from detpool.evaluation.detections import Detections
from detpool.evaluation.evaluator import DetectionEvaluator
from detpool.evaluation.results import read_results, to_detections, write_results
from detpool.evaluation.voc import voc_metrics

__all__ = [
    "CocoEvaluator",
    "DetectionEvaluator",
    "Detections",
    "read_results",
    "to_detections",
    "voc_metrics",
    "write_results",
]
