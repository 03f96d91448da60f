"""Class activation maps (Zhou et al., CVPR 2016): which bins of a RoI are evidence for its class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from detpool.detection.heads import ClassMapPredictor
from detpool.visualization.style import WIDTH, title_of

if TYPE_CHECKING:
    from detpool.predictor import Predictor


class ClassMap(NamedTuple):
    """A detection and the map of its class."""

    name: str
    score: float
    box: list[float]
    """x1, y1, x2, y2 in pixels of the image"""
    map: Tensor
    """(PH, PW), on the CPU; its mean is the logit of the class for this box"""


def find_class_maps(predictor: Predictor, image: Tensor, score: float = 0.5, count: int = 6) -> list[ClassMap]:
    """Detect objects and compute the maps of their classes, pooled from the detected boxes, best detection first.

    Args:
        predictor: predictor of a run with `head_pool=class_maps`.
        image: uint8 (3, H, W) RGB.
        score: score threshold.
        count: maximum number of detections.

    Raises:
        ValueError: If the model has no class maps, or no detection reaches the score threshold.
    """
    heads = predictor.model.roi_heads
    if not isinstance(heads.box_predictor, ClassMapPredictor):
        raise ValueError(f"the run has no class maps: its predictor is {type(heads.box_predictor).__name__}")
    (found,) = predictor.predict(image)
    kept = found["scores"][:count] >= score
    boxes, labels, scores = (found[key][:count][kept] for key in ("boxes", "labels", "scores"))
    if not len(boxes):
        best = f"the best has {found['scores'][0]:.2f}" if len(found["scores"]) else "there is none at all"
        raise ValueError(f"no detection has a score of {score:g} or more: {best}")
    with torch.no_grad():
        maps = heads.box_predictor.class_maps(heads.box_head(predictor.pool(image, boxes))).float().cpu()
    names = [predictor.class_names[label - 1] for label in labels.tolist()]
    own = maps[torch.arange(len(maps)), labels]
    return list(map(ClassMap, names, scores.tolist(), boxes.tolist(), own))


def plot_class_maps(found: list[ClassMap], image: Tensor) -> Figure:
    """Plot one panel per detection: its map over its box, red for bins with evidence for the class, blue against it."""
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    height, width = image.shape[1:]
    figure = Figure((WIDTH, rows * (0.87 * WIDTH / columns * height / width + 0.3)), layout="constrained")
    most = max(float(each.map.abs().max()) for each in found)
    norm = Normalize(-most, most)
    for place, each in enumerate(found):
        panel = figure.add_subplot(rows, columns, place + 1)
        panel.imshow(image.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=255)  # only the map has colors
        x1, y1, x2, y2 = each.box
        where = (x1, x2, y2, y1)
        panel.imshow(each.map.numpy(), extent=where, interpolation="nearest", cmap="RdBu_r", norm=norm, alpha=0.6)
        panel.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        panel.set_title(title_of(f"{each.name} {each.score:.2f}, logit {each.map.mean():.2f}"), fontsize=10)
    figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=figure.axes, label="logit of a bin", shrink=0.8)
    return figure
