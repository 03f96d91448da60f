"""VOC AP by hand, and against a slow implementation of the development kit's definition in exact fractions."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest

from detpool.evaluation import voc_metrics

Corners = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax as in an XML file: pixel indices from 1, inclusive


def continuous(corners: Corners) -> list[float]:
    x1, y1, x2, y2 = corners
    return [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


def ground_truth(objects: list[tuple[int, int, Corners, bool]], classes: int = 1, images: int = 6) -> dict[str, Any]:
    """Objects are (image, class, corners, difficult)."""
    return {
        "images": [{"id": i, "height": 500, "width": 500} for i in range(images)],
        "categories": [{"id": i, "name": f"class{i}"} for i in range(1, classes + 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "bbox": continuous(corners), "ignore": int(difficult)}
            for n, (image, label, corners, difficult) in enumerate(objects)
        ],
    }


def rows(detections: list[tuple[int, int, Corners, float]]) -> list[dict[str, Any]]:
    """Detections are (image, class, corners, score)."""
    return [
        {"image_id": image, "category_id": label, "bbox": continuous(corners), "score": score}
        for image, label, corners, score in detections
    ]


def test_by_hand() -> None:
    objects = [
        (0, 1, (1, 1, 100, 100), False),
        (0, 1, (201, 1, 300, 100), False),
        (1, 1, (1, 1, 100, 100), False),
        (1, 1, (201, 1, 300, 100), True),
    ]
    detections = [
        (0, 1, (1, 1, 100, 100), 0.9),  # true
        (0, 1, (1, 1, 100, 90), 0.8),  # the same object again: false
        (1, 1, (201, 1, 300, 100), 0.7),  # difficult: does not count
        (1, 1, (201, 1, 300, 100), 0.65),  # difficult again: does not count either
        (1, 1, (1, 1, 100, 50), 0.6),  # IoU exactly 0.5: true
        (2, 1, (1, 1, 100, 100), 0.5),  # an image without objects: false
    ]
    metrics = voc_metrics(ground_truth(objects), rows(detections))
    # Precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3 of three objects.
    assert metrics["voc_AP"] == metrics["voc_AP/class1"] == pytest.approx((1 + 2 / 3) / 3)
    # Recall 0, 0.1, 0.2, 0.3 with precision 1; 0.4, 0.5, 0.6 with 2/3; then none.
    assert metrics["voc_AP11"] == metrics["voc_AP11/class1"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_boxes_are_inclusive_pixels() -> None:
    # Widths 10 and 9 in the kit's count: IoU 9/19 beside each other by one pixel, 9/10 when nested.
    truth = ground_truth([(0, 1, (1, 1, 10, 1), False)])
    nested = rows([(0, 1, (1, 1, 9, 1), 1.0)])
    assert voc_metrics(truth, nested, iou_threshold=0.9)["voc_AP"] == 1
    assert voc_metrics(truth, nested, iou_threshold=0.901)["voc_AP"] == 0


def test_eleven_points_reach_every_tenth() -> None:
    # 3 of 10 found first try: recall 0.3 is reached exactly, which 3 * 0.1 in floating point is not.
    objects = [(i % 6, 1, (40 * i + 1, 1, 40 * i + 30, 30), False) for i in range(10)]
    detections = [(image, label, box, 1 - i / 10) for i, (image, label, box, _) in enumerate(objects[:3])]
    assert voc_metrics(ground_truth(objects), rows(detections))["voc_AP11"] == pytest.approx(4 / 11)


def test_nothing_predicted_and_nothing_to_find() -> None:
    objects = [(0, 1, (1, 1, 10, 10), False), (0, 2, (1, 1, 10, 10), True)]
    metrics = voc_metrics(ground_truth(objects, classes=3), rows([(0, 3, (1, 1, 10, 10), 0.5)]))
    assert metrics["voc_AP/class1"] == metrics["voc_AP11/class1"] == metrics["voc_AP"] == metrics["voc_AP11"] == 0
    for name in ("voc_AP/class2", "voc_AP/class3", "voc_AP11/class2", "voc_AP11/class3"):
        assert math.isnan(metrics[name])
    assert all(math.isnan(value) for value in voc_metrics(ground_truth([]), []).values())


def test_crowds_are_difficult() -> None:
    truth = ground_truth([(0, 1, (1, 1, 10, 10), False), (0, 1, (101, 1, 110, 10), False)])
    truth["annotations"][1]["iscrowd"] = 1
    assert voc_metrics(truth, rows([(0, 1, (1, 1, 10, 10), 0.5)]))["voc_AP"] == 1


def test_some_images_only() -> None:
    objects = [(0, 1, (1, 1, 10, 10), False), (1, 1, (1, 1, 10, 10), False)]
    detections = rows([(0, 1, (1, 1, 10, 10), 0.5), (1, 1, (201, 201, 210, 210), 0.9)])
    assert voc_metrics(ground_truth(objects), detections, image_ids={0})["voc_AP"] == 1
    assert voc_metrics(ground_truth(objects), detections)["voc_AP"] == pytest.approx(0.25)


def test_what_is_wrong_is_named() -> None:
    for threshold in (0, -0.5, 1.01):
        with pytest.raises(ValueError, match=r"iou_threshold must lie in \(0, 1\]"):
            voc_metrics(ground_truth([]), [], iou_threshold=threshold)
    with pytest.raises(ValueError, match="row 0: category_id 2 is not in the ground truth, which has 1"):
        voc_metrics(ground_truth([]), rows([(0, 2, (1, 1, 10, 10), 0.5)]))


def exact_iou(a: Corners, b: Corners) -> Fraction:
    """The kit's formula, + 1 and all."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    area_a, area_b = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
    return Fraction(width * height, area_a + area_b - width * height)


def exact_ap(objects: list, detections: list, threshold: Fraction) -> tuple[Fraction, Fraction] | None:
    """AP by area and at 11 points of one class, from the definitions."""
    positives = sum(not difficult for *_, difficult in objects)
    if positives == 0:
        return None
    claimed, points, true, false = set(), [], 0, 0
    for image, corners, _ in sorted(detections, key=lambda detection: detection[2], reverse=True):
        best, best_iou = None, Fraction(0)
        for index, (other, candidate, _) in enumerate(objects):
            if other == image and exact_iou(corners, candidate) > best_iou:
                best, best_iou = index, exact_iou(corners, candidate)
        if best is None or best_iou < threshold:
            false += 1
        elif objects[best][2]:
            continue
        elif best in claimed:
            false += 1
        else:
            claimed.add(best)
            true += 1
        points.append((Fraction(true, positives), Fraction(true, true + false)))

    def best_precision(recall: Fraction) -> Fraction:
        return max((precision for reached, precision in points if reached >= recall), default=Fraction(0))

    area = sum(best_precision(Fraction(i, positives)) for i in range(1, positives + 1)) / Fraction(positives)
    return area, sum(best_precision(Fraction(i, 10)) for i in range(11)) / Fraction(11)


@pytest.mark.parametrize("seed", range(6))
def test_equals_exact_fractions(seed: int) -> None:
    threshold = [Fraction(1, 2), Fraction(3, 10), Fraction(3, 4)][seed % 3]
    rng = random.Random(seed)
    objects, detections = [], []
    for _ in range(40):
        x, y, w, h = rng.randint(1, 60), rng.randint(1, 60), rng.randint(0, 40), rng.randint(0, 40)
        image, label = rng.randrange(6), rng.randint(1, 3)
        objects.append((image, label, (x, y, x + w, y + h), rng.random() < 0.2))
        for _ in range(rng.choice([0, 1, 1, 2])):
            dx, dy, dw, dh = (rng.randint(-4, 4) for _ in range(4))
            corners = (x + dx, y + dy, x + dx + max(w + dw, 0), y + dy + max(h + dh, 0))
            detections.append((image, label, corners, rng.randint(0, 50) / 50))  # scores repeat
    metrics = voc_metrics(ground_truth(objects, classes=4), rows(detections), iou_threshold=float(threshold))

    expected = {}
    for label in range(1, 5):
        exact = exact_ap(
            [(image, corners, difficult) for image, other, corners, difficult in objects if other == label],
            [(image, corners, score) for image, other, corners, score in detections if other == label],
            threshold,
        )
        for name, value in zip(("voc_AP", "voc_AP11"), exact or (math.nan, math.nan), strict=True):
            expected[f"{name}/class{label}"] = float(value)
    for name in ("voc_AP", "voc_AP11"):  # the mean of the classes that have objects
        expected[name] = sum(expected[f"{name}/class{label}"] for label in range(1, 4)) / 3
    assert metrics == pytest.approx(expected, abs=1e-12, nan_ok=True)
