"""Detectors as ONNX programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detpool.detection.detector import Prediction, TwoStageDetector
from detpool.detection.sampling import suppress_traced
from detpool.ops.onnx import export


class OneImage(nn.Module):
    """A detector called with one image (3, H, W), RGB in [0, 1]; returns its prediction, as `evaluate` does."""

    def __init__(self, model: TwoStageDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Prediction:
        ((prediction,), _) = self.model.evaluate([image])
        return prediction


def export_detector(model: TwoStageDetector, image_size: tuple[int, int]) -> torch.onnx.ONNXProgram:
    """A detector as an ONNX program from one image of a fixed size to its detections, however many these are.

    Its input is `image` (3, H, W), RGB in [0, 1], as `evaluate` takes it; its outputs are those of a prediction by
    name: `boxes` (n, 4) XYXY in pixels, `labels` (n,), `scores` (n,), and `mask_probabilities` (n, M, M) if it has
    masks. All of it is computed in the program, suppression included. `program.save(path)` writes it.

    Args:
        model: the detector; it is put into evaluation mode.
        image_size: `(height, width)` in pixels, which anchors and maps are made for.

    Raises:
        ImportError: without the packages `onnx` and `onnxscript`.
    """
    module = OneImage(model.eval())
    device = next(model.parameters()).device
    image = torch.rand(3, *image_size, device=device)
    with torch.no_grad():
        names = list(module(image))
    table = {suppress_traced: _suppress}
    return export(module, (image,), custom_translation_table=table, input_names=["image"], output_names=names)


def _suppress(boxes, scores, groups, threshold: float):  # type: ignore[no-untyped-def]  # of values in ONNX
    """Suppression by ONNX, which takes scores of all boxes for each group: for those of others one below the limit."""
    from onnxscript import opset18 as op

    count = op.Add(op.ReduceMax(op.Concat(groups, [0], axis=0), keepdims=0), 1)
    own = op.Equal(op.Unsqueeze(op.Range(0, count, 1), [1]), op.Unsqueeze(groups, [0]))
    table = op.Unsqueeze(op.Where(own, op.Unsqueeze(scores, [0]), -2.0), [0])  # the RPN has scores of -1
    most = torch.iinfo(torch.int64).max
    found = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), table, most, threshold, -1.5)
    rows = op.Gather(found, 2, axis=1)
    _, order = op.TopK(op.Gather(scores, rows), op.Shape(rows))
    return op.Gather(rows, order)
