"""The evaluator of a training loop, in one process and in two."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from detpool.evaluation import CocoEvaluator, DetectionEvaluator, voc_metrics
from detpool.evaluation.errors import error_decomposition

SMALL = json.loads((Path(__file__).parent / "coco_small.json").read_text())


class SmallDataset:
    class_names = tuple(category["name"] for category in SMALL["ground_truth"]["categories"])
    category_ids = tuple(category["id"] for category in SMALL["ground_truth"]["categories"])

    def ground_truth(self) -> dict[str, Any]:
        return SMALL["ground_truth"]


Sample = tuple[dict[str, torch.Tensor], dict[str, Any], tuple[int, int]]


def samples(scale: int = 2) -> list[Sample]:
    """The fixed file's detections as a model would return them, on inputs `scale` times the size of the files."""
    dataset = SmallDataset()
    made = []
    for image in SMALL["ground_truth"]["images"]:
        found = [row for row in SMALL["detections"] if row["image_id"] == image["id"]]
        xywh = torch.tensor([row["bbox"] for row in found], dtype=torch.float64).reshape(-1, 4) * scale
        prediction = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
            "labels": torch.tensor([dataset.category_ids.index(row["category_id"]) + 1 for row in found]).long(),
            "scores": torch.tensor([row["score"] for row in found], dtype=torch.float64),
        }
        target = {"image_id": image["id"], "orig_size": (image["height"], image["width"])}
        made.append((prediction, target, (image["height"] * scale, image["width"] * scale)))
    return made


def update(evaluator: DetectionEvaluator, batch: list[Sample]) -> None:
    if batch:
        predictions, targets, sizes = zip(*batch, strict=True)
        evaluator.update(predictions, targets, sizes)


def assert_same(metrics: dict[str, float], expected: dict[str, float]) -> None:
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    coco = CocoEvaluator(SMALL["ground_truth"]).evaluate(SMALL["detections"])
    return coco | voc_metrics(SMALL["ground_truth"], SMALL["detections"])


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval", "hotcoco"])
def test_scaled_predictions_give_the_metrics_of_the_file(backend: str, expected: dict[str, float]) -> None:
    evaluator = DetectionEvaluator(SmallDataset(), metrics=("coco", "voc"), backend=backend)
    update(evaluator, samples())
    assert_same(evaluator.compute(), expected)
    assert expected["AP"] == pytest.approx(SMALL["bbox"]["AP"])


def test_order_and_batches_do_not_matter() -> None:
    results = []
    for seed in range(3):
        # Equal scores everywhere: only the order could tell the detections apart.
        shuffled = [(p | {"scores": torch.ones_like(p["scores"])}, t, s) for p, t, s in samples()]
        random.Random(seed).shuffle(shuffled)
        evaluator = DetectionEvaluator(SmallDataset(), metrics=("coco", "voc"))
        for start in range(0, len(shuffled), seed + 1):
            update(evaluator, shuffled[start : start + seed + 1])
        results.append((evaluator.compute(), list(evaluator.results())))
    for metrics, rows in results[1:]:
        assert rows == results[0][1]
        for name, value in results[0][0].items():
            assert metrics[name] == value or (math.isnan(metrics[name]) and math.isnan(value)), name


def test_only_what_was_asked_for() -> None:
    voc = DetectionEvaluator(SmallDataset(), metrics=("voc",), voc_iou_threshold=0.75)
    update(voc, samples())
    assert_same(voc.compute(), voc_metrics(SMALL["ground_truth"], SMALL["detections"], iou_threshold=0.75))
    coco = DetectionEvaluator(SmallDataset(), max_dets=(1, 3))
    update(coco, samples())
    assert_same(coco.compute(), CocoEvaluator(SMALL["ground_truth"], max_dets=(1, 3)).evaluate(SMALL["detections"]))


def test_masks_have_keys_of_their_own() -> None:
    evaluator = DetectionEvaluator(SmallDataset(), iou_types=("bbox", "segm"))
    for prediction, target, _ in samples(1):
        height, width = target["orig_size"]
        masks = torch.zeros(len(prediction["boxes"]), 1, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, prediction["boxes"].round().int().tolist(), strict=True):
            mask[:, max(y1, 0) : y2, max(x1, 0) : x2] = 1
        evaluator.update([prediction | {"masks": masks}], [target], [(height, width)])
    metrics = evaluator.compute()
    boxes = CocoEvaluator(SMALL["ground_truth"]).evaluate(SMALL["detections"])
    segmentations = CocoEvaluator(SMALL["ground_truth"], iou_type="segm").evaluate(evaluator.results())
    assert_same(metrics, boxes | {f"mask_{name}": value for name, value in segmentations.items()})
    assert metrics["mask_AP"] > 0


def test_image_predicted_twice() -> None:
    evaluator = DetectionEvaluator(SmallDataset())
    update(evaluator, samples())
    update(evaluator, samples()[:1])
    with pytest.raises(ValueError, match="1 images were predicted more than once: 11;"):
        evaluator.compute()
    evaluator.reset()
    assert list(evaluator.results()) == []
    update(evaluator, samples())
    assert evaluator.compute()["AP"] == pytest.approx(SMALL["bbox"]["AP"])


def test_image_missing() -> None:
    evaluator = DetectionEvaluator(SmallDataset(), metrics=("coco", "voc"))
    update(evaluator, samples()[2:])
    with pytest.raises(ValueError, match=r"2 of 8 images of the data set were not predicted: 5, 11; partial=True"):
        evaluator.compute()
    ids = {image["id"] for image in SMALL["ground_truth"]["images"][2:]}
    rows = [row for row in SMALL["detections"] if row["image_id"] in ids]
    part = CocoEvaluator(SMALL["ground_truth"]).evaluate(rows, ids)
    assert_same(evaluator.compute(partial=True), part | voc_metrics(SMALL["ground_truth"], rows, image_ids=ids))
    # Objects of images that nobody looked at are not missed.
    assert evaluator.errors() == error_decomposition(SMALL["ground_truth"], rows, image_ids=ids)


def test_bad_updates() -> None:
    evaluator = DetectionEvaluator(SmallDataset())
    prediction, target, size = samples()[0]
    with pytest.raises(ValueError, match="must be equally long, got 1, 2 and 1"):
        evaluator.update([prediction], [target, target], [size])
    with pytest.raises(ValueError, match="image_id 12 is not in the data set's ground truth"):
        evaluator.update([prediction], [target | {"image_id": 12}], [size])


def test_bad_arguments() -> None:
    for arguments, message in (
        ({"metrics": ("lvis",)}, r"metrics must be one or more of coco, voc, got \['lvis'\]"),
        ({"metrics": ()}, r"metrics must be one or more of coco, voc, got \[\]"),
        ({"iou_types": ()}, "iou_types must be one or more of bbox, segm, boundary, got none"),
        ({"iou_types": ("box",)}, "iou_type must be one of bbox, segm, boundary, got 'box'"),
        ({"voc_iou_threshold": 50}, r"iou_threshold must lie in \(0, 1\], got 50"),
        ({"backend": "coco"}, "backend must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            DetectionEvaluator(SmallDataset(), **arguments)


def test_masks_are_asked_for_where_the_data_gives_none() -> None:
    for every, message in (
        (1, r"iou_type 'segm' needs masks.*set data.masks=true.* or evaluation.iou_types=\[bbox\]"),
        (100, "annotation .* has no segmentation"),  # absent from one
    ):
        truth = {key: [dict(item) for item in items] for key, items in SMALL["ground_truth"].items()}
        for annotation in truth["annotations"][::every]:
            annotation.pop("segmentation")
        dataset = SmallDataset()
        dataset.ground_truth = lambda truth=truth: truth  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=message):
            DetectionEvaluator(dataset, iou_types=("bbox", "segm"))
        DetectionEvaluator(dataset, iou_types=("bbox",))


def _evaluate_share(rank: int, folder: str) -> None:
    """One of two processes: rank 0 predicts three images, rank 1 the other five; then both predict one and the same."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        evaluator = DetectionEvaluator(SmallDataset(), metrics=("coco", "voc"))
        update(evaluator, samples()[3:] if rank else samples()[2::-1])
        record = {"metrics": evaluator.compute(), "rows": list(evaluator.results())}
        evaluator.reset()
        update(evaluator, samples()[:1])
        try:
            evaluator.compute(partial=True)
        except ValueError as error:
            record["error"] = str(error)
        Path(folder, f"{rank}.json").write_text(json.dumps(record))
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path, expected: dict[str, float]) -> None:
    # Forked, they need not import torch again.
    mp.start_processes(_evaluate_share, args=(str(tmp_path),), nprocs=2, start_method="fork")
    alone = DetectionEvaluator(SmallDataset())
    update(alone, samples())
    for rank in range(2):
        record = json.loads((tmp_path / f"{rank}.json").read_text())
        assert_same(record["metrics"], expected)
        assert record["rows"] == ([] if rank else list(alone.results()))
        assert "1 images were predicted more than once: 11;" in record["error"]
