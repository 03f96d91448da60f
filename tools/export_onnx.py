#!/usr/bin/env python
"""Writes a trained run as an ONNX program, and compares its detections in ONNX Runtime with the run's own.

    python tools/export_onnx.py ckpt_path=logs/train/runs/... output=model.onnx
    python tools/export_onnx.py ckpt_path=... output=model.onnx images=folder/ count=20

The program takes one `image` (3, H, W), RGB in [0, 1], with the size of the first image after the run's evaluation
transform. It returns `boxes` (n, 4) XYXY in its pixels, `labels`, `scores`, and `mask_probabilities` if there are
masks. `images` is an image file or a folder (default: the run's validation images); the first `count` (default: 5) of
that size are compared. Further `key=value` arguments change the config of the run, as for `eval.py`. Needs
`pip install 'detpool[onnx]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import Parser, positive_int
from predict import find_images
from torch import Tensor

from detpool.config import parse_path
from detpool.detection.onnx import export_detector
from detpool.errors import ConfigError, exit_with_message, writing
from detpool.predictor import Predictor, load
from detpool.training.module import to_unit_range
from detpool.training.runs import build_data

LARGEST = {"boxes": 0.01, "scores": 1e-4, "mask_probabilities": 1e-3}
"""Maximum differences from the run's own detections; those of boxes are in pixels."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    for option in ("--ckpt_path", "--output", "--images"):
        parser.add_argument(option, type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=positive_int, default=5, help=argparse.SUPPRESS)
    options, overrides = parser.parse_with_overrides(argv)
    with exit_with_message():
        if missing := [name for name in ("ckpt_path", "output") if getattr(options, name) is None]:
            raise ConfigError(f"no value given for {', '.join(missing)}: pass {' '.join(n + '=...' for n in missing)}")
        try:
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"{error.name} is not installed: pip install 'detpool[onnx]'") from None
        predictor = load(options.ckpt_path, *overrides, device="cpu")
        images = read_images(predictor, options.images)
        first = next(images)
        program = export_detector(predictor.model, (first.shape[1], first.shape[2]))
        with writing(options.output):
            options.output.parent.mkdir(parents=True, exist_ok=True)
            program.save(options.output)
        session = onnxruntime.InferenceSession(options.output)
        same = (image for image in images if image.shape == first.shape)
        compared = [first, *islice(same, options.count - 1)]
        found = sum(compare(predictor, session, image, number) for number, image in enumerate(compared))
    size = f"{first.shape[1]} x {first.shape[2]}"
    print(f"{options.output}: images of {size}; {found} detections in {len(compared)} images, the same in ONNX Runtime")


def read_images(predictor: Predictor, path: Path | None) -> Iterator[Tensor]:
    """Yields images for the model, (3, H, W) in [0, 1], from files or from the run's validation set."""
    if path is None:
        dataset = build_data(predictor.config).val_dataset
    else:
        dataset = predictor.prepare(find_images(path))
    return (to_unit_range([dataset[index][0]])[0] for index in range(len(dataset)))


def compare(predictor: Predictor, session: Any, image: Tensor, number: int) -> int:
    """Compares the detections in an image, and returns their number.

    Raises:
        ConfigError: If the program's detections differ from the model's.
    """
    with torch.inference_mode():
        ((expected,), _) = predictor.model.evaluate([image])
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))
    if not np.array_equal(got["labels"], expected["labels"].numpy()):
        raise ConfigError(f"image {number}: ONNX Runtime finds {len(got['labels'])} others than the run's model")
    for name in LARGEST.keys() & got.keys():
        difference = float(np.abs(got[name] - expected[name].numpy()).max(initial=0))
        if not difference <= LARGEST[name]:
            raise ConfigError(f"image {number}: {name} of ONNX Runtime differ by {difference:g} from the run's model's")
    return len(got["labels"])


if __name__ == "__main__":
    main()
