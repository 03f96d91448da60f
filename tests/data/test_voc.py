from collections import Counter

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from detpool.data.voc import VOC_CLASSES, VOCDataset, voc_datamodule
from detpool.errors import DataError

CAT, DOG = VOC_CLASSES.index("cat") + 1, VOC_CLASSES.index("dog") + 1
DIFFICULT = "<difficult>1</difficult>"


def test_coordinates_become_continuous(voc):
    root = voc("a", [("cat", (1, 1, 60, 40), ""), ("dog", (11, 21, 30, 32), "<difficult>0</difficult>")])
    dataset = VOCDataset(root)
    image, target = dataset[0]
    assert image.shape == (3, 40, 60)
    # The first box covers the whole picture, the second 20 x 12 pixels.
    assert target["boxes"].tolist() == [[0, 0, 60, 40], [10, 20, 30, 32]]
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].canvas_size == (40, 60)
    assert target["labels"].tolist() == [CAT, DOG]
    assert (target["image_id"], target["orig_size"]) == (1, (40, 60))
    truth = dataset.ground_truth()
    assert [a["bbox"] for a in truth["annotations"]] == [[0, 0, 60, 40], [10, 20, 20, 12]]
    assert [a["area"] for a in truth["annotations"]] == [2400, 240]
    assert truth["images"] == [{"id": 1, "file_name": "JPEGImages/a.jpg", "height": 40, "width": 60}]
    assert len(truth["categories"]) == 20


def test_difficult_objects_are_evaluated_only(voc):
    root = voc("a", [("cat", (1, 1, 20, 20), DIFFICULT), ("dog", (11, 21, 30, 32), "")])
    voc("b", [("cat", (1, 1, 20, 20), DIFFICULT)])
    voc("c", [])
    dataset = VOCDataset(root)
    assert [dataset[i][1]["labels"].tolist() for i in range(3)] == [[DOG], [], []]
    assert dataset[2][1]["boxes"].shape == (0, 4)
    rows = dataset.ground_truth()["annotations"]
    assert [(a["image_id"], a["ignore"], a["difficult"], a["iscrowd"]) for a in rows] == [
        (1, 1, 1, 0),
        (1, 0, 0, 0),
        (2, 1, 1, 0),
    ]
    # Neither image without an object to train on is of use in training.
    training = VOCDataset(root, drop_empty=True)
    assert training.image_ids == [1]
    assert [image["id"] for image in training.ground_truth()["images"]] == [1]


def test_degenerate_boxes_are_dropped_with_one_warning(voc):
    root = voc("a", [("cat", (5, 5, 5, 30), ""), ("dog", (11, 21, 30, 32), ""), ("cat", (9, 9, 8, 12), "")])
    voc("b", [("cat", (61, 1, 80, 20), "")])  # right of the picture
    with pytest.warns(UserWarning, match=r"left out 3 of 4 objects") as caught:
        dataset = VOCDataset(root)
    assert len(caught) == 1
    assert "VOC image set train" in str(caught[0].message)
    assert "JPEGImages/a.jpg" in str(caught[0].message)
    assert [dataset[i][1]["labels"].tolist() for i in range(2)] == [[DOG], []]
    assert len(dataset.ground_truth()["annotations"]) == 1


def test_boxes_across_the_border_are_clamped_in_samples(voc):
    dataset = VOCDataset(voc("a", [("cat", (0, 31, 30, 45), "")]))
    assert dataset[0][1]["boxes"].tolist() == [[0, 30, 30, 40]]
    assert dataset.ground_truth()["annotations"][0]["bbox"] == [-1, 30, 31, 15]


@pytest.mark.parametrize("parent", [".", "VOCdevkit"])
def test_years_are_joined(voc, parent):
    root = voc("000001", [("cat", (1, 1, 20, 20), "")], f"{parent}/VOC2007", "trainval")
    voc("2008_1", [("dog", (1, 1, 20, 20), "")], f"{parent}/VOC2012", "trainval")
    voc("000002", [("dog", (1, 1, 20, 20), "")], f"{parent}/VOC2007", "test")
    assert len(VOCDataset(root, 2007, "trainval")) == 1
    both = VOCDataset(root, [2007, "2012"], "trainval")
    assert [both[i][1]["labels"].item() for i in range(2)] == [CAT, DOG]
    assert both.image_ids == [1, 2]
    folder = "" if parent == "." else "VOCdevkit/"
    names = [image["file_name"] for image in both.ground_truth()["images"]]
    assert names == [f"{folder}VOC2007/JPEGImages/000001.jpg", f"{folder}VOC2012/JPEGImages/2008_1.jpg"]
    data = voc_datamodule(root, [2007, 2012], "trainval", "test", eval_year=2007, num_workers=0)
    assert (len(data.train_dataset), len(data.val_dataset)) == (2, 1)
    assert data.test_dataset is data.val_dataset


def test_datamodule_drops_empty_images_from_training_only(voc):
    for image_set in ("train", "val", "test"):
        root = voc(f"{image_set}1", [("cat", (1, 1, 20, 20), "")], image_set=image_set)
        voc(f"{image_set}2", [], image_set=image_set)
    data = voc_datamodule(root, test_set="test")
    assert [len(d) for d in (data.train_dataset, data.val_dataset, data.test_dataset)] == [1, 2, 2]
    assert data.test_dataset.ground_truth()["images"][0]["file_name"] == "JPEGImages/test1.jpg"
    assert len(voc_datamodule(root, drop_empty=False).train_dataset) == 2


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>"])
def test_size_is_read_from_the_file_where_the_annotation_has_none(voc, size):
    dataset = VOCDataset(voc("a", [("cat", (1, 1, 20, 20), "")], size=size))
    assert dataset[0][1]["orig_size"] == (40, 60)


def test_own_classes_floats_and_columns(voc):
    root = voc("a", [("cell", (1.5, 1, 20.25, 20), "<difficult>0</difficult>")])
    (root / "ImageSets/Main/cell_train.txt").write_text("a  1\n\n")
    dataset = VOCDataset(root, image_set="cell_train", class_names=["cell"])
    assert dataset[0][1]["boxes"].tolist() == [[0.5, 0, 20.25, 20]]
    assert (dataset.class_names, dataset.category_ids) == (["cell"], [1])


def test_other_image_formats(voc):
    root = voc("a", [("cat", (1, 1, 20, 20), "")])
    Image.open(root / "JPEGImages/a.jpg").save(root / "JPEGImages/a.png")
    (root / "JPEGImages/a.jpg").unlink()
    annotation = root / "Annotations/a.xml"
    annotation.write_text(annotation.read_text().replace("a.jpg", "whatever.png"))
    assert VOCDataset(root)[0][0].shape == (3, 40, 60)


def test_unknown_class_names_the_file_and_the_nearest(voc):
    root = voc("a", [("cat", (1, 1, 20, 20), ""), ("dogg", (1, 1, 20, 20), "")])
    with pytest.raises(DataError, match=r"Annotations/a.xml: object 2 is of class 'dogg'.*did you mean 'dog'"):
        VOCDataset(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", "a.xml: not well-formed XML"),
        ("<xmin>1</xmin>", "", "a.xml: an <object> has no <bndbox><xmin>"),
        ("<xmin>1</xmin>", "<xmin>left</xmin>", "a.xml: <bndbox><xmin> is 'left', expected a number"),
        ("<xmin>1</xmin>", "<xmin>nan</xmin>", "a.xml: <bndbox><xmin> is 'nan', expected a number"),
        ("<name>cat</name>", "", "a.xml: object 1 is of class ''"),
        ("<width>60", "<width>wide", "a.xml: <size><width> is 'wide', expected a number"),
    ],
)
def test_malformed_annotations(voc, old, new, message):
    root = voc("a", [("cat", (1, 1, 20, 20), "")])
    path = root / "Annotations/a.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        VOCDataset(root)


def test_what_is_missing_is_named(voc, tmp_path):
    root = voc("a", [("cat", (1, 1, 20, 20), "")])
    with pytest.raises(DataError, match=r"trian.txt: no image set 'trian'; did you mean 'train'\?"):
        VOCDataset(root, image_set="trian")
    with pytest.raises(DataError, match=r"year 2007: neither .*VOC2007 .* pass no year"):
        VOCDataset(root, 2007)
    with pytest.raises(DataError, match=r"nowhere: no such folder; data.root is to name"):
        VOCDataset(tmp_path / "nowhere")
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(DataError, match=r"Annotations/a.xml: the annotation of an image in .* is missing"):
        VOCDataset(root)
    (root / "ImageSets/Main/train.txt").write_text("")
    with pytest.raises(DataError, match="none of its 0 images has an entry"):
        VOCDataset(root)
    with pytest.raises(DataError, match="not Pascal VOC's layout"):
        VOCDataset(root / "JPEGImages")


def test_a_year_must_be_chosen(voc):
    root = voc("a", [("cat", (1, 1, 20, 20), "")], "VOCdevkit/VOC2007")
    voc("b", [("cat", (1, 1, 20, 20), "")], "VOCdevkit/VOC2012")
    with pytest.raises(DataError, match="pass a year, found are 2007, 2012"):
        VOCDataset(root)


def test_nothing_to_train_on(voc):
    root = voc("a", [])
    with pytest.raises(DataError, match="none of its 1 images has an object to train on"):
        VOCDataset(root, drop_empty=True)


def test_real_blood_cells(shared_dir):
    classes = ["RBC", "WBC", "Platelets"]
    root = shared_dir / "data" / "bccd"
    with pytest.warns(UserWarning, match="left out 1 of") as caught:
        datasets = {name: VOCDataset(root, image_set=name, class_names=classes) for name in ("train", "val", "test")}
    assert len(caught) == 2
    # The published counts, less the two boxes without area.
    assert {name: len(dataset) for name, dataset in datasets.items()} == {"train": 205, "val": 87, "test": 72}
    rows = [a for dataset in datasets.values() for a in dataset.ground_truth()["annotations"]]
    assert Counter(a["category_id"] for a in rows) == {1: 4155 - 2, 2: 372, 3: 361}
    dataset = datasets["test"]
    for i in range(0, len(dataset), 10):
        image, target = dataset[i]
        assert image.shape == (3, 480, 640)
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert target["boxes"].min() >= 0
