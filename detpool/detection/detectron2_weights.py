"""Converts weights of detectron2's model zoo (`.pkl`) to the names and conventions of this package's detectors.

Names, the order of classes, and the order of color channels are converted, but not what layers compute. In the zoo's
ResNets with MSRA's weights, the stride is in the 1 x 1 convolutions instead of the 3 x 3 ones, and anchors are not
rounded. Such weights are therefore an initialization for training, and do not give a detector of the same accuracy.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detpool.detection.backbones.body import IMAGENET_STD
from detpool.errors import WeightsError

_NAMES: tuple[tuple[str, Any], ...] = (
    (r"backbone\.bottom_up\.stem\.conv1\.(weight|bias)", r"backbone.body.conv1.\1"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"(?:backbone\.bottom_up|backbone)\.res(\d)\.", lambda m: f"backbone.body.layer{int(m[1]) - 1}."),
    (r"backbone\.stem\.conv1\.(weight|bias)", r"backbone.body.conv1.\1"),
    (r"backbone\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"backbone\.fpn_lateral(\d)\.", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0."),
    (r"backbone\.fpn_output(\d)\.", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0."),
    (r"proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"roi_heads\.box_head\.fc(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0."),
    (r"roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
_NOT_WEIGHTS = ("proposal_generator.anchor_generator.", "pixel_mean", "pixel_std")
_SCORES = "roi_heads.box_predictor.cls_score."
_BOXES = "roi_heads.box_predictor.bbox_pred."
_MASKS = "roi_heads.mask_predictor.mask_fcn_logits."


def read_detectron2_file(path: str) -> tuple[dict[str, Tensor], int | None]:
    """Read a detector of detectron2's model zoo.

    Args:
        path: the `.pkl` file. Nothing in it is executed.

    Returns:
        The tensors by name, and the number of classes without background, if there is a box head.

    Raises:
        WeightsError: If the file is missing, damaged, or not a detector of detectron2.
    """
    try:
        with Path(path).open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except OSError as error:
        raise WeightsError(f"weights file {path!r} cannot be read: {error}") from error
    except Exception as error:  # damaged pickles may raise anything
        raise WeightsError(f"weights file {path!r} cannot be read as detectron2's: {error}") from error
    given = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(given, dict) or not given or not all(isinstance(v, np.ndarray) for v in given.values()):
        raise WeightsError(f"weights file {path!r} holds no names with arrays, as detectron2's model zoo has them")
    tensors = {}
    for name, array in given.items():
        if name.startswith(_NOT_WEIGHTS):
            continue
        for pattern, ours in _NAMES:
            name = re.sub(f"^{pattern}" if not pattern.startswith(r"\.") else pattern, ours, name)
        tensors[name] = torch.from_numpy(np.array(array))
    for kind in ("weight", "bias"):
        if _SCORES + kind in tensors:  # background is last in detectron2
            tensors[_SCORES + kind] = tensors[_SCORES + kind].roll(1, 0)
        for name, rows in ((_BOXES, 4), (_MASKS, 1)):  # detectron2 has none for background
            if name + kind in tensors:
                value = tensors[name + kind]
                tensors[name + kind] = torch.cat([value.new_zeros(rows, *value.shape[1:]), value])
    stem = "backbone.body.conv1.weight"
    if stem in tensors:
        # detectron2's images are BGR in 0 .. 255 minus the mean; ours are also divided by the standard deviation.
        scale = 255 * torch.tensor(IMAGENET_STD)[:, None, None]
        tensors[stem] = tensors[stem].flip(1) * scale
    scores = tensors.get(f"{_SCORES}bias")
    return tensors, None if scores is None else len(scores) - 1


_KNOWN = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that accepts only NumPy arrays and their containers; anything else is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
