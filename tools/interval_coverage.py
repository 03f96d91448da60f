#!/usr/bin/env python
"""Measures how often the intervals of `tools/report.py` contain the true value, which is known for simulated detectors.

    python tools/interval_coverage.py                          # 400 studies of 3 seeds and 200 of 2,000 images; minutes

Images have objects of three classes, some of which are hard. The easier an object is, the more likely a detector finds
it, and the more accurate its box is. Scores reflect the accuracy, and there are false positives. Two configurations,
one of which is better, are simulated with many seeds on a pool of images; seeds of a configuration differ by chance. A
study consists of some of the seeds on some of the images, drawn without replacement. There are three intervals for its
difference in AP: the one over seeds should contain the mean of all seeds on the study's images, the one over images the
mean of its seeds on the pool, and the one over both the mean of all seeds on the pool. With 400 studies, the standard
error of a percentage is about 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from command_line import Parser, positive_int
from numpy.typing import NDArray

from detpool.errors import ConfigError, exit_with_message
from detpool.evaluation import CocoEvaluator, Detections
from detpool.evaluation.matches import Matches
from detpool.evaluation.resampling import bootstrap_weights, weighted_ap
from detpool.report.statistics import RESAMPLES, Sample, compare

NAMES = ("first", "second", "third")
_SIDE = 256  # pixels


def make_truth(images: int, seed: int = 0) -> dict[str, Any]:
    """Generates ground truth in COCO's format, with 1 to 7 objects per image."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(rng.integers(1, 8)):
            sides = rng.uniform(16, 100, 2)
            box = [*rng.uniform(0, _SIDE - sides), *sides]
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(rng.integers(1, 4)), "bbox": box}
            annotations.append(row | {"area": box[2] * box[3], "iscrowd": 0})
    return {
        "images": [{"id": image, "height": _SIDE, "width": _SIDE} for image in range(images)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)],
        "annotations": annotations,
    }


def detect(truth: dict[str, Any], noise: float, seed: int, false: float = 3) -> Detections:
    """Simulates the detections of a detector.

    Args:
        truth: ground truth from `make_truth`.
        noise: standard deviation of box coordinates, relative to the box sides, for an object of average difficulty.
        seed: seed of the simulated training.
        false: mean number of false positives per image.
    """
    annotations = truth["annotations"]
    # The difficulty of each object, and of each image, is the same for all detectors.
    shared, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    image_ids = np.array([row["image_id"] for row in annotations])
    hard = shared.normal(0, 0.4, len(annotations)) + shared.normal(0, 0.4, len(truth["images"]))[image_ids]
    noise *= np.exp(rng.normal(0, 0.015))  # variation between seeds
    boxes = np.array([row["bbox"] for row in annotations])
    spread = noise * np.exp(hard)
    found = rng.random(len(boxes)) < 1 / (1 + np.exp(hard - 2))
    moved = boxes + rng.normal(0, 1, boxes.shape) * spread[:, None] * boxes[:, [2, 3, 2, 3]]
    moved[:, 2:] = moved[:, 2:].clip(min=1)
    scores = 1 / (1 + np.exp(-1.5 + 6 * spread + rng.normal(0, 0.8, len(boxes))))
    count = int(rng.poisson(false * len(truth["images"])))
    nowhere = np.concatenate([rng.uniform(0, _SIDE / 2, (count, 2)), rng.uniform(16, 100, (count, 2))], 1)
    labels = np.array([row["category_id"] for row in annotations])
    total = int(found.sum()) + count
    return Detections(
        image_ids=np.concatenate([image_ids[found], rng.integers(0, len(truth["images"]), count)]),
        category_ids=np.concatenate([labels[found], rng.integers(1, 4, count)]),
        boxes=np.concatenate([moved[found], nowhere]),
        scores=np.concatenate([scores[found], 1 / (1 + np.exp(rng.normal(1.2, 1, count)))]),
        ious=np.full(total, np.nan),
        segmentations=[None] * total,
    )


def of_images(matches: Matches, places: NDArray[np.int64]) -> Matches:
    """Returns the matches of some of the images.

    Args:
        matches: matches of all images.
        places: indices of the images.
    """
    new = np.full(len(matches.image_ids), -1, np.int32)
    new[places] = np.arange(len(places))
    kept, objects = new[matches.images] >= 0, matches.objects[new[matches.objects[:, 0]] >= 0]
    columns = {name: getattr(matches, name)[kept] for name in ("classes", "scores", "matched", "ignored")}
    objects = np.stack([new[objects[:, 0]], *objects[:, 1:].T], 1)
    return replace(matches, image_ids=places, images=new[matches.images[kept]], objects=objects, **columns)


def coverage(
    studies: int, images: int = 200, pool: int = 2000, seeds: int = 3, all_seeds: int = 30, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Measures how often, in percent, each interval of AP and AP75 contains the true value, and its width, in points.

    Args:
        studies: number of simulated studies.
        images: number of images of a study.
        pool: number of images of the pool.
        seeds: number of seeds of a study.
        all_seeds: number of seeds of each configuration.
        resamples: number of bootstrap samples of the images.

    Raises:
        ConfigError: If `seeds` is not 2 to `all_seeds`, or `images` is greater than `pool`.
    """
    if not (2 <= seeds <= all_seeds and images <= pool):
        raise ConfigError(f"seeds must be 2 to {all_seeds}, images {pool} at most, got {seeds} and {images}")
    truth = make_truth(pool)
    evaluator = CocoEvaluator(truth)
    runs = [
        [evaluator.matches(detect(truth, noise, place * all_seeds + seed)) for seed in range(all_seeds)]
        for place, noise in enumerate((0.10, 0.094))
    ]
    metrics, rng = ("AP", "AP75"), np.random.default_rng(0)
    on_pool = _gains(runs, np.ones((1, pool), np.int32), metrics)
    found = {(metric, kind): [0, 0.0] for metric in metrics for kind in ("seeds", "images", "both")}
    for _ in range(studies):
        places = np.sort(rng.choice(pool, images, replace=False))
        drawn = rng.choice(all_seeds, seeds, replace=False)
        own = [[of_images(run, places) for run in each] for each in runs]
        on_images = _gains(own, np.ones((1, images), np.int32), metrics)
        studied = _gains(
            [[each[seed] for seed in drawn] for each in own], bootstrap_weights(images, resamples), metrics
        )
        for metric in metrics:
            resampled = pd.DataFrame(studied[metric][:, 1:])
            result = compare(Sample(pd.Series(studied[metric][:, 0]), resampled, places))
            true = {"seeds": on_images[metric].mean(), "images": on_pool[metric][drawn].mean()}
            for kind, value in (true | {"both": on_pool[metric].mean()}).items():
                low, high = getattr(result, kind)
                found[metric, kind][0] += low <= value <= high
                found[metric, kind][1] += 100 * (high - low)
    rows = [[*key, 100 * hits / studies, width / studies] for key, (hits, width) in found.items()]
    return pd.DataFrame(rows, columns=["metric", "interval of", "contains the truth, %", "mean width, points"])


def _gains(
    runs: Sequence[Sequence[Matches]], weights: NDArray[np.int32], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Difference between the second and the first configuration for each seed, by metric: (seeds, resamples)."""
    first, second = ([weighted_ap(run, weights) for run in each] for each in runs)
    return {metric: np.stack([b[metric] - a[metric] for a, b in zip(first, second, strict=True)]) for metric in metrics}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--studies", type=positive_int, default=400, metavar="N", help="default: 400")
    add("--images", type=positive_int, default=200, metavar="N", help="of a study, up to 2,000; default: 200")
    add("--seeds", type=positive_int, default=3, metavar="N", help="of a study, 2 to 30; default: 3")
    options = parser.parse_args(argv)
    with exit_with_message():
        found = coverage(options.studies, options.images, seeds=options.seeds)
        print(found.to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
