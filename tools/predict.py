#!/usr/bin/env python
"""Detects objects in images with a trained run: rows in COCO's result format, and pictures.

    python tools/predict.py ckpt_path=logs/train/runs/... images=folder/
    python tools/predict.py ckpt_path=... images=folder/ features=pooled.npz model.roi_heads.score_thresh=0.5

`images` is an image file or a folder; all image files in it and its subfolders are used, except hidden ones. Files in
`output` (default: logs/predict/<time>) are `predictions.json.gz`; `images.json` with COCO's `images` and `categories`,
to which the rows refer; and `pictures/` of the first `pictures` images (default: 12) with detections that have a score
of at least `score` (default: 0.5).
`features` is a file for the pooled features of each detection: `features` (K, C, height, width), `boxes` (K, 4) XYXY in
pixels of the files, `scores`, `labels` and `image_ids`. Batches have `batch_size` images (default: 1), which are read
by `data.num_workers` processes. Further `key=value` arguments change the config of the run, as for `eval.py`.

    python tools/predict.py ckpt_path=... boxes=annotations.json images=folder/ features=pooled.npz

pools the boxes of an annotation file in COCO's format, without detection: each `file_name` is relative to `images`, and
`labels` are category ids of the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from command_line import Parser, natural, positive_int
from rich.progress import track
from torchvision.ops import box_convert

from detpool.config import parse_path
from detpool.data.coco import COCODataset
from detpool.data.unlabeled import ImageLike, UnlabeledImages
from detpool.data.voc_files import IMAGE_SUFFIXES, files_below
from detpool.errors import ConfigError, exit_with_message, writing
from detpool.evaluation.detections import Detections
from detpool.evaluation.pictures import draw_panels
from detpool.evaluation.results import RESULTS, write_results
from detpool.files import write_json_atomically
from detpool.predictor import Predictor, load


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--ckpt_path", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--boxes", type=parse_path, help=argparse.SUPPRESS)
    parser.add_argument("--features", type=_npz, help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=positive_int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=natural, default=12, help=argparse.SUPPRESS)
    parser.add_argument("--score", type=float, default=0.5, help=argparse.SUPPRESS)
    options, overrides = parser.parse_with_overrides(argv)
    output = options.output or Path(f"logs/predict/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    with exit_with_message():
        needed = ("ckpt_path", "images", *(["features"] if options.boxes else []))
        if missing := [name for name in needed if getattr(options, name) is None]:
            raise ConfigError(f"no value given for {', '.join(missing)}: pass {' '.join(n + '=...' for n in missing)}")
        if options.boxes is not None:
            pool_boxes(options, overrides)
            return
        files = find_images(options.images)
        predictor = load(options.ckpt_path, *overrides)
        dataset = predictor.prepare(files)
        truth = dataset.ground_truth()  # early: raises an error for files that are not images
        start = time.perf_counter()
        found = detect(predictor, dataset, options.batch_size)
        seconds = time.perf_counter() - start
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
            write_results(output / RESULTS, found)
            write_json_atomically(output / "images.json", {key: truth[key] for key in ("images", "categories")})
            draw(output / "pictures", dataset, found, options.pictures, options.score)
        if options.features is not None:
            images = zip(dataset.image_ids, files, strict=True)
            write_features(options.features, predictor, images, len(files), found)
    print(f"{len(found)} detections in {len(files)} images, {len(files) / seconds:.1f} images/s: {output}")


def find_images(path: Path) -> list[Path]:
    """Returns an image file itself, or all image files in a folder and its subfolders, sorted, except hidden ones.

    Raises:
        ConfigError: If there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"images={path} does not exist (looked from {Path.cwd()})")
    files = [file for file in files_below(path) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ConfigError(f"images={path} holds no image file ({', '.join(IMAGE_SUFFIXES)})")
    return files


def detect(predictor: Predictor, dataset: UnlabeledImages, batch_size: int) -> Detections:
    """Returns all detections, image by image."""
    workers = int(predictor.config.data.get("num_workers", 0))
    found = predictor.detect(dataset, batch_size=batch_size, num_workers=workers)
    return Detections.concatenate(list(track(found, "detecting", len(dataset), disable=not sys.stdout.isatty())))


def draw(folder: Path, dataset: UnlabeledImages, found: Detections, limit: int, score: float) -> None:
    """Draws pictures of the first images with their detections, named after the image files."""
    classes = dict(enumerate(dataset.class_names, start=1))
    names = _names([Path(str(file)) for file in dataset.images])
    for index, image_id in enumerate(dataset.image_ids[:limit]):
        image, target = dataset[index]
        rows = list(found.take((found.image_ids == image_id) & (found.scores >= score)))
        caption = f"{Path(str(dataset.images[index])).name} · score ≥ {score:g}"
        picture = draw_panels(image, [(caption, rows)], orig_size=target["orig_size"], classes=classes, masks=True)
        folder.mkdir(exist_ok=True)
        picture.save(folder / names[index])


def _names(files: Sequence[Path]) -> list[str]:
    """File names for the pictures: those of the image files, prefixed with numbers if two are the same."""
    stems = [file.stem for file in files]
    numbered = len(set(stems)) < len(stems)
    return [f"{number}_{stem}.png" if numbered else f"{stem}.png" for number, stem in enumerate(stems, start=1)]


def pool_boxes(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Writes the pooled features of the boxes in an annotation file.

    Raises:
        DataError: If the file is missing or malformed, or an image is missing.
    """
    dataset = COCODataset(options.boxes, options.images)
    dataset.check_images()
    found = Detections.of([row | {"score": 1.0} for row in dataset.ground_truth()["annotations"]])
    # Load images in the annotated orientation, which may differ from the displayed one.
    images = ((image_id, dataset.load(index)[0]) for index, image_id in enumerate(dataset.image_ids))
    write_features(options.features, load(options.ckpt_path, *overrides), images, len(dataset), found)
    print(f"pooled features of {len(found)} boxes in {len(dataset)} images: {options.features}")


def write_features(
    path: Path, predictor: Predictor, images: Iterable[tuple[int, ImageLike]], count: int, found: Detections
) -> None:
    """Writes the pooled features of each detection, image by image.

    Args:
        path: the file to write.
        predictor: the detector.
        images: pairs of image id and image.
        count: number of images.
        found: the detections, grouped by image in the order of `images`.

    Raises:
        ConfigError: If the file cannot be written.
    """
    corners = box_convert(torch.from_numpy(found.boxes), "xywh", "xyxy").float()
    features = []
    for image_id, image in track(images, "pooling", count, disable=not sys.stdout.isatty()):
        own = torch.from_numpy(found.image_ids == image_id)
        features.append(predictor.pool(image, corners[own]).cpu())
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            features=torch.cat(features).numpy(),
            boxes=corners.numpy(),
            scores=found.scores,
            labels=found.category_ids,
            image_ids=found.image_ids,
        )


def _npz(text: str) -> Path:
    path = parse_path(text)
    if path.suffix != ".npz":
        raise argparse.ArgumentTypeError(f"must be a file in .npz, got {text!r}")
    return path


if __name__ == "__main__":
    main()
