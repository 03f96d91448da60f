from collections import Counter

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from detpool.data.voc import VOC_CLASSES, VOCDataset, voc_datamodule
from detpool.data.voc_files import published_files
from detpool.errors import DataError

CAT, DOG = VOC_CLASSES.index("cat") + 1, VOC_CLASSES.index("dog") + 1
DIFFICULT = "<difficult>1</difficult>"


def test_coordinates_become_continuous(voc):
    root = voc("a", [("cat", (1, 1, 60, 40), ""), ("dog", (11, 21, 30, 32), "<difficult>0</difficult>")])
    dataset = VOCDataset(published_files(root))
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
    dataset = VOCDataset(published_files(root))
    assert [dataset[i][1]["labels"].tolist() for i in range(3)] == [[DOG], [], []]
    assert dataset[2][1]["boxes"].shape == (0, 4)
    rows = dataset.ground_truth()["annotations"]
    assert [(a["image_id"], a["ignore"], a["difficult"], a["iscrowd"]) for a in rows] == [
        (1, 1, 1, 0),
        (1, 0, 0, 0),
        (2, 1, 1, 0),
    ]
    # Neither image without an object to train on is of use in training.
    training = VOCDataset(published_files(root), drop_empty=True)
    assert training.image_ids == [1]
    assert [image["id"] for image in training.ground_truth()["images"]] == [1]


@pytest.mark.parametrize("parent", [".", "VOCdevkit"])
def test_years_are_joined(voc, parent):
    root = voc("000001", [("cat", (1, 1, 20, 20), "")], f"{parent}/VOC2007", "trainval")
    voc("2008_1", [("dog", (1, 1, 20, 20), "")], f"{parent}/VOC2012", "trainval")
    voc("000002", [("dog", (1, 1, 20, 20), "")], f"{parent}/VOC2007", "test")
    assert len(VOCDataset(published_files(root, 2007, "trainval"))) == 1
    both = VOCDataset(published_files(root, [2007, "2012"], "trainval"))
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
    dataset = VOCDataset(published_files(voc("a", [("cat", (1, 1, 20, 20), "")], size=size)))
    assert dataset[0][1]["orig_size"] == (40, 60)


def test_own_classes_floats_and_columns(voc):
    root = voc("a", [("cell", (1.5, 1, 20.25, 20), "<difficult>0</difficult>")])
    (root / "ImageSets/Main/cell_train.txt").write_text("a  1\n\n")
    dataset = VOCDataset(published_files(root, image_set="cell_train"), class_names=["cell"])
    assert dataset[0][1]["boxes"].tolist() == [[0.5, 0, 20.25, 20]]
    assert (dataset.class_names, dataset.category_ids) == (["cell"], [1])


@pytest.mark.parametrize("filename", ["im", "im.jpg", "", "im.PNG", "elsewhere/whatever.tif"])
def test_the_one_image_of_that_name_is_meant(voc, filename):
    root = voc("im", [("cat", (1, 1, 20, 20), "")])
    Image.open(root / "JPEGImages/im.jpg").save(root / "JPEGImages/im.png")
    (root / "JPEGImages/im.jpg").unlink()
    annotation = root / "Annotations/im.xml"
    annotation.write_text(annotation.read_text().replace("im.jpg", filename))
    dataset = VOCDataset(published_files(root))
    assert dataset.ground_truth()["images"][0]["file_name"] == "JPEGImages/im.png"
    assert dataset[0][0].shape == (3, 40, 60)


def test_of_several_images_of_a_name_the_annotation_chooses(voc):
    root = voc("im", [("cat", (1, 1, 20, 20), "")])
    image, annotation = Image.open(root / "JPEGImages/im.jpg"), root / "Annotations/im.xml"
    image.save(root / "JPEGImages/im.png")
    image.save(root / "JPEGImages/im.bmp")
    text = annotation.read_text()
    for filename, file in (("im.jpg", "im.jpg"), ("im.png", "im.png"), ("im", "im.jpg")):
        annotation.write_text(text.replace("im.jpg", filename))
        assert VOCDataset(published_files(root)).ground_truth()["images"][0]["file_name"] == f"JPEGImages/{file}"
    (root / "JPEGImages/im.jpg").unlink()
    with pytest.raises(DataError, match=r"Annotations/im.xml: its image is im.bmp or im.png, <filename> says 'im'"):
        VOCDataset(published_files(root))


def test_names_in_lists(voc):
    names = ["img (2)", "img (3)", "img", "img 1", "a.b", "deep/er", "-1"]
    for name in names:
        (voc("x", []) / "Annotations/deep").mkdir(exist_ok=True)
        (voc("x", []) / "JPEGImages/deep").mkdir(exist_ok=True)
        root = voc(name, [("cat", (1, 1, 20, 20), "")])
    path = root / "ImageSets/Main/train.txt"
    path.write_text("\ufeffimg (2)\r\nimg (3)  1\r\nimg -1\r\n\r\n  img 1\r\na.b  0\r\ndeep/er\t1\r\n-1 -1", "utf-8")
    files = [image["file_name"] for image in VOCDataset(published_files(root)).ground_truth()["images"]]
    assert files == [f"JPEGImages/{name}.jpg" for name in names]
    path.write_text("img (2) 2\n")  # no flag
    with pytest.raises(DataError, match=r"Annotations/img \(2\) 2.xml: the annotation of an image .* is missing"):
        VOCDataset(published_files(root))
    path.write_bytes("img".encode("utf-16"))
    with pytest.raises(DataError, match=r"train.txt: cannot be read"):
        VOCDataset(published_files(root))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", "a.xml: not well-formed XML"),
        ("<xmin>1</xmin>", "", "a.xml: an <object> has no <bndbox><xmin>"),
        ("<xmin>1</xmin>", "<xmin>left</xmin>", "a.xml: <bndbox><xmin> is 'left', expected a number"),
        ("<xmin>1</xmin>", "<xmin>nan</xmin>", "a.xml: <bndbox><xmin> is 'nan', expected a number"),
        ("<name>cat</name>", "", "a.xml: object 1 is of class ''"),
        ("<width>60", "<width>wide", "a.xml: <size><width> is 'wide', expected a number"),
        ("<width>60", "<width>60.5", r"a.xml: <size> is 40 x 60.5 \(height x width\), expected whole numbers"),
        ("<width>60", "<width>999999999", "expected a number|expected whole numbers"),
        ("<xmin>1</xmin>", "<xmin>1e12</xmin>", r"a.xml: <bndbox><xmin> is '1e12', expected a number \(object 1\)"),
        ("<xmin>1</xmin>", "<xmin>1</xmin><xmin>2</xmin>", "a.xml: an <object> has 2 <bndbox><xmin>, expected one"),
        ("</bndbox>", "</bndbox><difficult>2</difficult>", r"a.xml: <difficult> is 2, expected 0 or 1 \(object 1\)"),
        ("</bndbox>", "</bndbox><difficult>no</difficult>", "a.xml: <difficult> is 'no', expected a number"),
        ("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>", "a.xml: an <object> has 2 <bndbox><xmin>"),
        ("<annotation>", '<?xml version="1.0" encoding="utf-9"?><annotation>', "a.xml: not well-formed XML: .*utf-9"),
    ],
)
def test_malformed_annotations(voc, old, new, message):
    root = voc("a", [("cat", (1, 1, 20, 20), "")])
    path = root / "Annotations/a.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        VOCDataset(published_files(root))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<object>", "<objects><object>"),
        ("<object>", "<item>"),
        ("annotation", "annotations"),
    ],
)
def test_objects_in_another_layout_are_not_lost(voc, old, new):
    root = voc("a", [("cat", (1, 1, 20, 20), "")] if "object" in old else [])
    path = root / "Annotations/a.xml"
    text = path.read_text().replace(old, new)
    path.write_text(text.replace("</object>", {"<item>": "</item>"}.get(new, "</object></objects>")))
    with pytest.raises(DataError, match=r"a.xml: not Pascal VOC's layout: expected <annotation> with <object>"):
        VOCDataset(published_files(root))


def test_parts_of_an_object_are_no_objects(voc):
    part = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    dataset = VOCDataset(published_files(voc("a", [("person", (1, 1, 20, 20), part)])))
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 20, 20]]


def test_unknown_classes_and_what_may_be_meant(voc):
    with pytest.raises(DataError, match=r"Annotations/a.xml: object 2 is of class 'dogg'.*did you mean 'dog'"):
        VOCDataset(published_files(voc("a", [("cat", (1, 1, 20, 20), ""), ("dogg", (1, 1, 20, 20), "")])))
    with pytest.raises(DataError, match="'pedestrian', not in class_names; choose from aero.*data.class_names are"):
        VOCDataset(published_files(voc("a", [("pedestrian", (1, 1, 20, 20), "")])))
    with pytest.raises(ValueError, match="class_names: got .*, need each name once"):
        VOCDataset(published_files(voc("a", [])), class_names=["cat", "cat"])


def test_what_is_missing_is_named(voc, tmp_path):
    root = voc("a", [("cat", (1, 1, 20, 20), "")])
    for year in (2007, 2012):
        voc("b", [], f"devkit/VOCdevkit/VOC{year}")
    voc("c", [], "empty")

    def refused(message, folder=root, year=None, image_set="train", **options):
        with pytest.raises(DataError, match=message):
            VOCDataset(published_files(folder, year, image_set), **options)

    refused(r"trian.txt: no image set 'trian'; did you mean 'train'\?", image_set="trian")
    refused(r"year 2007: neither .*VOC2007 .* pass no year", root, 2007)
    refused("pass a year; found: 2007, 2012", root / "devkit")
    refused(r"nowhere: no such folder; data.root is to name", tmp_path / "nowhere")
    refused("none of its 1 images has an object to train on", root / "empty", drop_empty=True)
    refused("not Pascal VOC's layout", root / "JPEGImages")
    (root / "Annotations/a.xml").unlink()
    refused(r"Annotations/a.xml: the annotation of an image in .* is missing")
    (root / "ImageSets/Main/train.txt").write_text("")
    refused("none of its 0 images has an entry")


def test_real_blood_cells(shared_dir):
    classes = ["RBC", "WBC", "Platelets"]
    root = shared_dir / "data" / "bccd"
    with pytest.warns(UserWarning, match="left out 1 of") as caught:
        datasets = {
            name: VOCDataset(published_files(root, image_set=name), class_names=classes)
            for name in ("train", "val", "test")
        }
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
