"""Evaluating a run on data that it was not trained for: other files, other classes."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

import detpool
from detpool.config import check, replace_data
from detpool.data.shapes import ShapesDataset
from detpool.errors import ConfigError
from detpool.evaluation import CocoEvaluator
from detpool.evaluation.results import RESULTS, read_results
from detpool.run_config import load_config
from detpool.training import runs
from detpool.training.shared_classes import SharedClasses

CONFIGS = Path(__file__).parents[2] / "configs"
KNOWN = ["circle", "square", "star"]


@pytest.fixture(scope="module")
def run(compose_tiny, tmp_path_factory):
    """The directory of a run that knows three classes, each of which it finds in every image."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = [
        f"data.classes=[{','.join(KNOWN)}]",
        "model.roi_heads.score_thresh=0.001",
        "trainer.max_epochs=4",
        "model.rpn.post_nms_top_n_test=300",
        "data.train_images=64",
    ]
    runs.train(compose_tiny(folder, *arguments))
    return folder


def export(folder, classes):
    """Shapes of some classes as files in COCO's format, the ids of categories in falling order."""
    dataset = ShapesDataset("val", 6, size=64, classes=classes, seed=3)
    truth = dataset.ground_truth()
    for index, image in enumerate(truth["images"]):
        image["file_name"] = f"{image['id']}.png"
        to_pil_image(dataset.load(index)[0]).save(folder / image["file_name"])
    for row in [*truth["annotations"], *truth["categories"]]:
        key = "category_id" if "category_id" in row else "id"
        row[key] = 100 - row[key]
    path = folder / "annotations.json"
    path.write_text(json.dumps(truth))
    return path, truth


def evaluate(run, tmp_path, *arguments):
    config = load_config(run)
    config.run_dir = str(tmp_path / "evaluated")
    left = replace_data(config, list(arguments), CONFIGS)
    assert left == []
    check(config)
    return runs.restore_and_evaluate(config, runs.find_checkpoint(run), 0.0, other_data=True)


def expected(run, truth, names):
    """Metrics of what the run finds of some classes in the pictures, by hand."""
    predictor = detpool.load(run, device="cpu")
    ids = {row["name"]: row["id"] for row in truth["categories"]}
    truth = truth | {
        "categories": [row for row in truth["categories"] if row["name"] in names],
        "annotations": [row for row in truth["annotations"] if row["category_id"] in [ids[name] for name in names]],
    }
    dataset = ShapesDataset("val", 6, size=64, classes=list(ids), seed=3)
    rows = []
    for image, prediction in zip(
        truth["images"], predictor.predict([dataset.load(i)[0] for i in range(len(dataset))]), strict=True
    ):
        for (x1, y1, x2, y2), label, score in zip(
            *(prediction[key].tolist() for key in ("boxes", "labels", "scores")), strict=True
        ):
            if (name := KNOWN[label - 1]) in names:
                box = [x1, y1, x2 - x1, y2 - y1]
                rows.append({"image_id": image["id"], "category_id": ids[name], "bbox": box, "score": score})
    return CocoEvaluator(truth).evaluate(rows), rows


@pytest.mark.parametrize(
    ("classes", "shared"),
    [
        (["cross", "star", "square"], ["star", "square"]),  # one that the run does not know
        (["star", "circle", "square"], ["star", "circle", "square"]),  # in another order
        (["circle"], ["circle"]),
    ],
)
def test_metrics_are_of_the_classes_that_both_have(run, tmp_path, capsys, classes, shared):
    path, truth = export(tmp_path, classes)
    metrics = evaluate(run, tmp_path, "data=coco", f"data.train_json={path}", f"data.val_json={path}")
    by_hand, rows = expected(run, truth, shared)
    assert by_hand["AR100"] > 0
    assert metrics.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    found = read_results(tmp_path / "evaluated" / RESULTS)
    assert [row["category_id"] for row in found] == [row["category_id"] for row in rows]
    notes = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())["notes"]
    assert not any("chose the epoch" in note for note in notes)
    assert any("not on cross" in note for note in notes) == ("cross" in classes)


def test_images_are_prepared_as_the_runs_were(run, tmp_path):
    path, _ = export(tmp_path, ["star"])
    config = load_config(run)
    arguments = ["data=coco", f"data.train_json={path}", "data.split=0.5", "evaluation.pictures=0"]
    assert replace_data(config, arguments, CONFIGS) == ["evaluation.pictures=0"]
    assert config.data.eval_transform is None
    assert config.data.batch_size == 2
    assert config.data._target_ == "detpool.data.coco.coco_datamodule"
    replace_data(config, [*arguments, "data.eval_transform.min_size=300"], CONFIGS)
    assert config.data["eval_transform"]["min_size"] == 300
    before = config.copy()
    assert replace_data(config, ["data.batch_size=4"], CONFIGS) == ["data.batch_size=4"]
    assert config == before


def test_classes_that_have_nothing_in_common(run, tmp_path):
    path, _ = export(tmp_path, ["cross", "ring"])
    with pytest.raises(ConfigError, match=r"the data has the classes \['ring', 'cross'\], the checkpoint was trained"):
        evaluate(run, tmp_path, "data=coco", f"data.train_json={path}", f"data.val_json={path}")
    with pytest.raises(ConfigError, match="data=ccoo does not exist; did you mean 'coco'"):
        evaluate(run, tmp_path, "data=ccoo")
    # Shapes of other classes are other pictures.
    with pytest.raises(ConfigError, match=r"\['square', 'cross'\], the checkpoint was trained for"):
        evaluate(run, tmp_path, "data=shapes", "data.classes=[square,cross]", "data.val_images=4")


def test_labels_go_both_ways():
    shared = SharedClasses(["a", "b", "c"], ["c", "a"])
    (target,) = shared.label_targets([{"labels": torch.tensor([1, 2, 1]), "boxes": "kept"}])
    assert target["labels"].tolist() == [3, 1, 3]
    assert target["boxes"] == "kept"
    prediction = {"labels": torch.tensor([3, 2, 1]), "scores": torch.tensor([0.1, 0.2, 0.3])}
    (found,) = shared.label_predictions([prediction])
    assert found["labels"].tolist() == [1, 2]
    assert found["scores"].tolist() == pytest.approx([0.1, 0.3])
    with pytest.raises(ConfigError, match=r"the data has the classes \['d'\]"):
        SharedClasses(["a"], ["a", "d"])
