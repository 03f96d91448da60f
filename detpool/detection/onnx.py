"""Export of detectors as ONNX programs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from detpool.detection.backbones.weights import freeze_batch_norm
from detpool.detection.detector import Prediction, TwoStageDetector
from detpool.detection.iou_heads import IoUHeads
from detpool.detection.proposals import ProposalNetwork
from detpool.detection.suppression import suppress_traced
from detpool.errors import ConfigError
from detpool.ops.onnx import export


def export_detector(model: TwoStageDetector, image_size: tuple[int, int]) -> torch.onnx.ONNXProgram:
    """Exports a detector as an ONNX program for one image of a fixed size, with any number of detections.

    The input is `image` (3, H, W), RGB in [0, 1]. The outputs have the names of predictions: `boxes` (n, 4) XYXY in
    pixels, `labels` (n,), `scores` (n,), and `mask_probabilities` (n, M, M) if there are masks. Suppression is part of
    the program. `program.save(path)` writes it to a file.

    Args:
        model: the detector, which is not changed.
        image_size: `(height, width)` of the image in pixels.

    Raises:
        ConfigError: If the detector has no RPN, or if it has an IoU head or uses soft-NMS, which are loops that depend
            on values.
        ImportError: If the packages `onnx` and `onnxscript` are not installed.
    """
    if not isinstance(model.rpn, ProposalNetwork):
        raise ConfigError(f"a detector with proposals of {type(model.rpn).__name__} has no ONNX form: it needs an RPN")
    if isinstance(model.roi_heads, IoUHeads):
        raise ConfigError(
            "a detector with an IoU head has no ONNX form: suppression and refinement are loops over values"
        )
    if model.roi_heads.nms != "hard":
        raise ConfigError(
            f"model.roi_heads.nms={model.roi_heads.nms} has no ONNX form, being a loop over values: set it to hard"
        )
    copied = deepcopy(model).eval()
    freeze_batch_norm(copied)  # PyTorch's layer tests whether there are RoIs
    module = _OneImage(copied)
    image = torch.rand(3, *image_size, device=next(module.parameters()).device)
    names = list(module(image))
    table = {suppress_traced: _suppress}
    return export(module, (image,), custom_translation_table=table, input_names=["image"], output_names=names)


class _OneImage(nn.Module):
    def __init__(self, model: TwoStageDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Prediction:
        ((prediction,), _) = self.model.evaluate([image])
        return prediction


def _suppress(boxes, scores, groups, threshold: float):  # type: ignore[no-untyped-def] # values of onnxscript
    """Suppression in ONNX, which takes scores of all boxes for each group: those of others are below the limit."""
    from onnxscript import opset18

    op: Any = opset18  # Any: its annotations lack numbers, which are accepted
    count = op.Add(op.ReduceMax(op.Concat(groups, [0], axis=0), keepdims=0), 1)
    own = op.Equal(op.Unsqueeze(op.Range(0, count, 1), [1]), op.Unsqueeze(groups, [0]))
    table = op.Unsqueeze(op.Where(own, op.Unsqueeze(scores, [0]), -2.0), [0])  # the RPN marks excluded boxes by -1
    most = torch.iinfo(torch.int64).max
    found = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), table, most, threshold, -1.5)
    rows = op.Gather(found, 2, axis=1)
    _, order = op.TopK(op.Gather(scores, rows), op.Shape(rows))
    return op.Gather(rows, order)
