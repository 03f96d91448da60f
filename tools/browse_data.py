"""Draws samples of a data set on one sheet as training or evaluation sees them, after their transforms.

    python tools/browse_data.py data=shapes
    python tools/browse_data.py data=coco data.root=/path/to/coco data.masks=true split=train count=24
    python tools/browse_data.py experiment=bccd split=val output=cells.png

`split` is train, val or test (default: train), `count` the number of samples (default: 16), `output` the PNG file
(default: logs/browse_data/<split>.png); all other arguments are those of train.py. For the training split, the first
samples of the first epoch with the run's seed are shown; for the others, samples are evenly spread over the split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from command_line import Parser, one_of, positive_int
from PIL import Image
from pycocotools import mask as rle

from detpool.config import check, config_folder, parse_command_line
from detpool.data.dataset import DetectionDataset, Sample
from detpool.data.sampling import EvalSampler, SampleKey, TrainSampler
from detpool.errors import ConfigError, exit_with_message, writing
from detpool.evaluation.pictures import contact_sheet, draw_panels
from detpool.training.runs import build_data

STAGES = {"train": "fit", "val": "validate", "test": "test"}
PANEL = 400
COLUMNS = 4


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--split", type=one_of(STAGES), default="train", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=positive_int, default=16, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=_picture, help=argparse.SUPPRESS)
    options, overrides = parser.parse_with_overrides(argv)
    split = options.split
    with exit_with_message():
        dataset, keys = _samples(overrides, split, options.count)
        classes = dict(enumerate(dataset.class_names, start=1))
        pictures = [_draw(dataset[key], classes) for key in keys]
        if not pictures:
            raise ConfigError(f"the {split} split has no samples")
        output = options.output or Path(f"logs/browse_data/{split}.png")
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(pictures, COLUMNS).save(output)
    print(f"{len(pictures)} of {len(dataset)} samples of the {split} split: {output}")


def _picture(text: str) -> Path:
    if Path(text).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise argparse.ArgumentTypeError(f"must be a .png or .jpg file, got {text!r}")
    return Path(text)


def _samples(overrides: list[str], split: str, count: int) -> tuple[DetectionDataset, list[SampleKey]]:
    """Returns a split as read by train.py, and the keys of the samples to show."""
    line = parse_command_line(overrides, config_folder(), "train")
    config = line.configs.compose(line.overrides)
    check(config, line.configs, line.overrides)
    data = build_data(config, [STAGES[split]])
    if split == "train":
        return data.train_dataset, list(islice(TrainSampler(data.train_dataset, data.seed), count))
    dataset = data.val_dataset if split == "val" else data.test_dataset
    keys = list(EvalSampler(dataset, data.seed))
    count = min(count, len(keys))
    return dataset, [keys[i * len(keys) // count] for i in range(count)]


def _draw(sample: Sample, classes: dict[int, str]) -> Image.Image:
    image, target = sample
    height, width = image.shape[-2:]
    number = len(target["labels"])
    caption = f"image {target['image_id']} · {height} x {width} · {number} object{'' if number == 1 else 's'}"
    masks = target["masks"].dense().numpy() if "masks" in target else []
    objects = [
        {
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": rle.encode(np.asfortranarray(masks[i])) if len(masks) else None,
        }
        for i, ((x1, y1, x2, y2), label) in enumerate(
            zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
        )
    ]
    panels = [(caption, objects)]
    return draw_panels(image, panels, orig_size=(height, width), classes=classes, panel=PANEL, masks=True)


if __name__ == "__main__":
    main()
