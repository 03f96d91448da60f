"""Segmentations of any kind against pycocotools' encoder, and what must not reach its decoder."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from detpool.data.packed import PackedStrings
from detpool.evaluation import CocoEvaluator
from detpool.masks import SegmentationError, check_segmentations, check_texts, decode_segmentation, to_rles

BACKENDS = ("pycocotools", "faster_coco_eval", "hotcoco")


def compressed(mask: Any) -> dict[str, Any]:
    mask = np.asarray(mask, np.uint8)
    return {"size": list(mask.shape), "counts": rle.encode(np.asfortranarray(mask))["counts"].decode()}


def random_masks(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    masks = []
    for i in range(count):
        height, width = rng.integers(1, 50, 2)
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        masks.append([mask, mask * 0, mask * 0 + 1][min(i % 8, 2)])
    big = np.zeros((3000, 2000), np.uint8)
    big[-1, -1] = 1  # a run of several million
    return [*masks, big]


def test_compressed_masks_are_what_was_encoded() -> None:
    masks = random_masks(60)
    encoded, sizes = [compressed(mask) for mask in masks], [mask.shape for mask in masks]
    # More than one chunk of them, which are decoded together.
    for result, given in zip(to_rles(encoded * 80, sizes * 80), encoded * 80, strict=True):
        assert result["counts"].decode() == given["counts"]
    for mask, segmentation in zip(masks, encoded, strict=True):
        assert np.array_equal(decode_segmentation(segmentation, mask.shape), mask)


def test_no_cut_or_changed_string_is_decoded_to_anything_but_the_whole_image() -> None:
    refused = 0
    for mask in random_masks(24)[:-1]:
        whole = compressed(mask)
        for length in range(len(whole["counts"])):
            with pytest.raises(SegmentationError):
                check_segmentations([whole | {"counts": whole["counts"][:length]}], [mask.shape])
        for place in range(len(whole["counts"])):
            text = whole["counts"]
            changed = text[:place] + chr(ord(text[place]) ^ 1 << place % 7) + text[place + 1 :]
            try:
                (result,) = to_rles([whole | {"counts": changed}], [mask.shape])
            except SegmentationError:
                refused += 1
            else:  # the same sum by chance
                assert rle.decode(result).shape == mask.shape
    assert refused > 1000


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [4, 5], "counts": compressed(np.eye(4, 5))["counts"][:-1]}, "do not sum up to the 20 pixels"),
        ({"size": [4, 5], "counts": "05d"}, "is cut short"),  # the last character says that more follow
        ({"size": [4, 5], "counts": compressed(np.ones((5, 5)))["counts"]}, "do not sum up .* but to 25"),
        ({"size": [4, 5], "counts": "0d /"}, "characters that mean nothing"),
        ({"size": [4, 5], "counts": "0dé"}, "characters that mean nothing"),
        ({"size": [4, 5], "counts": "0d\ud800"}, "characters that mean nothing"),
        ({"size": [4, 5], "counts": "oooooooooooo0"}, "more than 32 bits"),
        ({"size": [4, 5], "counts": ""}, "an empty run-length encoding"),
        ({"size": [4, 5], "counts": "Oe0"}, "a negative run length"),  # -1 and 21
        ({"size": [4, 5], "counts": [-1, 21]}, "not all whole numbers, at least 0"),
        ({"size": [4, 5], "counts": [0.5, 19.5]}, "not all whole numbers"),
        ({"size": [4, 5], "counts": [float("nan"), 20]}, "not all whole numbers"),
        ({"size": [4, 5], "counts": ["0", 20]}, "not all whole numbers"),
        ({"size": [4, 5], "counts": [0, 2**32 + 20]}, "not all whole numbers"),
        ({"size": [4, 5], "counts": [0] * 50 + [21]}, "do not sum up"),
        ({"size": [4, 5], "counts": []}, "do not sum up"),
        ({"size": [5, 4], "counts": [0, 20]}, r"a mask of \(height, width\) \[5, 4\] in an image of \[4, 5\]"),
        ({"size": 20, "counts": [0, 20]}, r"a mask of \(height, width\) 20"),
        ({"counts": [0, 20]}, r"a mask of \(height, width\) None"),
        ([[0, 0, 4, 0, 4, 1e9]], "a polygon with coordinates from 0 to 1000000000.0 in an image"),
        ([[0, 0, 4, 0, 4, float("nan")]], "coordinate that is NaN"),
        ([[0, 0, 4, 0, 4, float("inf")]], "from 0 to inf"),
        ([[0, 0, 4, 0, 4, 10**400]], "a polygon with coordinates from 0 to 1000"),
        ([[0, 0, 4, 0, 4, "4"]], "a polygon that is not a list"),
        ([[0, 0, 4, 0, 4, True]], "a polygon that is not a list"),
    ],
)
def test_malformed_segmentations_reach_neither_library(segmentation: Any, reason: str) -> None:
    good = compressed(np.eye(4, 5))
    with pytest.raises(SegmentationError, match=reason) as caught:
        check_segmentations([good, [[0, 0, 4, 0, 4, 3]], segmentation, good], [(4, 5)] * 4)
    assert caught.value.index == 2
    with pytest.raises(SegmentationError, match=reason) as caught:
        check([json.dumps(each) for each in (good, [[0, 0, 4, 0, 4, 3]], segmentation, good)])
    assert caught.value.index == 2
    with pytest.raises(SegmentationError, match=reason):
        decode_segmentation(segmentation, (4, 5))
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=f"annotation 9 has .*{reason}"):
            evaluator(segmentation, backend, crowd=1)
        with pytest.raises(ValueError, match=f"row 0 has .*{reason}"):
            evaluator(good, backend).evaluate([detection(segmentation)])


def check(texts: list[str], size: tuple[int, int] = (4, 5)) -> None:
    data, starts, ends = PackedStrings.pack(texts).parts
    check_texts(data.numpy(), starts.numpy(), ends.numpy(), np.array([size] * len(texts)).reshape(-1, 2))


def test_polygons_in_text() -> None:
    right = ["[[0,0,4,0,4,3]]", "[ [0.5 ,\n-1, 4e0, 0, 4, 3E-1], [0,0,1,0,1,1] ]", "[[-50,0,55,0.0,4,3]]"]
    wrong = ["[[0,0,4,0,4,3],[]]", "[[0,0,4,0,4]]", "[[0,0,4,0,4,3],7]", "[[[0,0,4,0,4,3]]]", "[]", "[[0,0,4,0]]"]
    wrong += ["[[0,0,4,0,4,55.01]]", "[[0,0,4,0,4,-50.01]]", "[[0,0,4,0,4,true]]", "[0,0,4,0,4,3]", "7"]
    check([])
    check(right)
    for text in wrong:
        with pytest.raises(SegmentationError) as caught:
            check([*right, text, *right])
        assert caught.value.index == len(right)


def evaluator(segmentation: Any, backend: Any, crowd: int = 0, size: tuple[int, int] = (4, 5)) -> CocoEvaluator:
    truth = {
        "images": [{"id": 3, "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 9, "image_id": 3, "category_id": 1, "area": 9, "iscrowd": crowd, "segmentation": segmentation}
        ],
    }
    return CocoEvaluator(truth, iou_type="segm", backend=backend)


def detection(segmentation: Any, score: float = 0.9) -> dict[str, Any]:
    return {"image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1], "score": score, "segmentation": segmentation}


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_runs_do_not_end_a_comparison(backend: str) -> None:
    # Columns of 10: rows 0 .. 9 and 0 .. 14 of the pixels from 10 on. Both have an empty run at 15, where the
    # libraries would stop with an IoU of 1 instead of 10 / 15.
    size, object_, found = [10, 10], [10, 5, 0, 5, 80], [10, 5, 0, 10, 75]
    metrics = evaluator({"size": size, "counts": object_}, backend, size=(10, 10)).evaluate(
        [detection({"size": size, "counts": found})]
    )
    assert (metrics["AP@0.65"], metrics["AP@0.70"]) == (pytest.approx(1), 0)
    assert np.array_equal(
        decode_segmentation({"size": size, "counts": found}, (10, 10)).ravel(order="F"), [0] * 10 + [1] * 15 + [0] * 75
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["polygon", "counts", "string"])
def test_crowds_are_compared_by_the_detection_s_own_area(backend: str, kind: str) -> None:
    size = (20, 30)
    crowd = np.zeros(size, np.uint8)
    crowd[2:18, 5:25] = 1
    flat = crowd.ravel(order="F")
    segmentation = {
        "polygon": [[5, 2, 25, 2, 25, 18, 5, 18]],
        "counts": {"size": list(size), "counts": np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist()},
        "string": compressed(crowd),
    }[kind]
    object_ = np.zeros(size, np.uint8)
    object_[0:2, 0:30] = 1
    ground_truth = {
        "images": [{"id": 3, "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 1, "area": 320, "iscrowd": 1, "segmentation": segmentation},
            {"id": 2, "image_id": 3, "category_id": 1, "area": 60, "iscrowd": 0, "segmentation": compressed(object_)},
        ],
    }
    small = np.zeros(size, np.uint8)
    small[4:8, 6:10] = 1  # within the crowd: not counted, though its IoU with it is 16 / 320
    coco = CocoEvaluator(ground_truth, iou_type="segm", backend=backend)
    right = detection(compressed(object_), 0.5)
    assert coco.evaluate([detection(compressed(small)), right])["AP"] == pytest.approx(1)
    elsewhere = np.zeros(size, np.uint8)
    elsewhere[18:20, 0:5] = 1
    assert coco.evaluate([detection(compressed(elsewhere)), right])["AP"] == pytest.approx(0.5)
