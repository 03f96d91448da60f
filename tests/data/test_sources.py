"""Files named by settings: where they are looked for, and what settings that do not fit each other end in."""

import json
import os
import shutil

import pytest
from PIL import Image

from detpool.data.coco import coco_datamodule, published_files
from detpool.data.voc import voc_datamodule
from detpool.data.voc_files import files_in
from detpool.errors import DataError

BOX = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 20]}


def xml(name, *labels):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    objects = "".join(f"<object><name>{label}</name>{box}</object>" for label in labels)
    size = "<size><width>60</width><height>40</height></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


@pytest.fixture
def write(tmp_path, picture):
    """Write a picture, and an XML file with objects of the given classes; the places are below `tmp_path`."""

    def write(image, annotation, *labels):
        for place in (image, annotation):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / image)
        (tmp_path / annotation).write_text(xml(tmp_path.joinpath(image).name, *labels))

    return write


def test_images_of_a_json_file_lie_beside_it_or_where_it_is_said(coco, tmp_path):
    path, images = published_files(coco([BOX]), "train")
    shutil.copy(path, images / "_annotations.coco.json")
    beside = coco_datamodule(train_json=images / "_annotations.coco.json", val_json=path, val_images=images)
    beside.check()
    assert beside.train_dataset.image_files == [str(images / "7.png")]
    assert beside.val_dataset.image_files == [str(images / "7.png"), str(images / "8.png")]
    # file_name with a folder, as Label Studio's
    content = json.loads(path.read_text())
    for row in content["images"]:
        row["file_name"] = f"train/{row['file_name']}"
    (tmp_path / "result.json").write_text(json.dumps(content))
    files = {"val_json": path, "val_images": images, "test_json": tmp_path / "result.json"}
    data = coco_datamodule(train_json=str(tmp_path / "result.json"), **files)
    data.check()
    assert data.test_dataset.image_files == beside.val_dataset.image_files
    assert data.test_dataset is not data.val_dataset


def test_what_is_missing_is_named_by_its_setting(coco, tmp_path):
    path, images = published_files(coco([BOX]), "train")

    def refused(message, check=DataError, **settings):
        with pytest.raises(check, match=message):
            coco_datamodule(**settings).check(["train"])

    val = {"val_json": path, "val_images": images}
    typo = path.with_name("instances_trian.json")
    refused(
        r"data.train_json=.*trian.json: no such file; did you mean 'instances_train.json'\?", train_json=typo, **val
    )
    refused(
        r"data.train_json=.*: is a folder, expected a JSON file; .*instances_train.json", train_json=path.parent, **val
    )
    refused(r"data.train_images=.*/no: no such folder", train_json=path, train_images=tmp_path / "no", **val)
    missing = (
        r"annotations/7.png: the image does not exist; .*train.json names it; data.train_images is to name the folder"
    )
    refused(missing, train_json=path, **val)
    with pytest.raises(DataError, match=r"7.png: .*\(validation part\) names it; data.train_images is to name"):
        coco_datamodule(train_json=path, split=0.5).check(["val"])
    with pytest.raises(DataError, match=r"7.png: the image does not exist; .*; data.test_images is to name the folder"):
        coco_datamodule(train_json=path, test_json=path, **val).check(["test"])
    (tmp_path / "empty").mkdir()
    for settings, message in (
        ({"train_xml": tmp_path / "no"}, r"data.train_xml=.*/no: no such folder"),
        ({"train_xml": tmp_path / "empty"}, r"data.train_xml=.*/empty: no XML file is in this folder or below it"),
    ):
        with pytest.raises(DataError, match=message):
            voc_datamodule(**settings, split=0.5).check()


DATA = {"coco": (coco_datamodule, "json", "split"), "voc": (voc_datamodule, "xml", "set")}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ({}, ["no training data: data.root is null, and so is data.train_KIND;"]),
        ({"val_KIND": "v"}, ["no training data", "data.train_KIND, but data.val_KIND=v;"]),
        ({"train_images": "i", "split": 0.5}, ["no training data", "but data.train_images=i;"]),
        (
            {"root": "r", "train_KIND": "t"},
            ["data.root=r and data.train_KIND=t: either", "data.root=null takes it back"],
        ),
        ({"root": "r", "test_KIND": "t", "val_images": "i"}, ["data.root=r and data.test_KIND=t, data.val_images=i: "]),
        ({"train_KIND": "t"}, ["no validation data: data.val_KIND is null; data.split=0.8"]),
        ({"train_KIND": "t", "test_KIND": "t"}, ["no validation data"]),
        ({"train_KIND": "t", "val_images": "i"}, ["data.val_images=i: needs data.val_KIND"]),
        ({"train_KIND": "t", "val_KIND": "v", "test_images": "i"}, ["data.test_images=i: needs data.test_KIND"]),
        ({"train_KIND": "t", "val_KIND": "v", "split": 0.5}, ["data.split=0.5 and data.val_KIND=v: ", "to null"]),
        ({"root": "r", "val_SET": "v", "split": 0.5}, ["data.split=0.5 and data.val_SET=v: "]),
        ({"train_KIND": "t", "val_KIND": "v", "test_SET": "x"}, ["data.test_SET=x: chooses from what data.root holds"]),
    ],
)
def test_settings_that_do_not_fit(name, settings, messages):
    make, kind, word = DATA[name]

    def fill(text):
        return text.replace("KIND", kind).replace("SET", word)

    with pytest.raises(ValueError, match="data") as caught:
        make(**{fill(key): value for key, value in settings.items()})
    assert [message for message in map(fill, messages) if message not in str(caught.value)] == []


def test_years_are_of_a_root():
    for settings, message in (
        ({"train_xml": "t", "val_xml": "v", "year": 2007}, "data.year=2007: chooses from what data.root holds"),
        ({"root": "r", "split": 0.8, "eval_year": 2012}, "data.eval_year=2012: with data.split the validation set is"),
    ):
        with pytest.raises(ValueError, match=message):
            voc_datamodule(**settings)


def images_of(files):
    return [path.name for path in files.images]


def test_images_of_xml_files_lie_beside_them_or_where_it_is_said(write, tmp_path):
    write("voc/JPEGImages/a.jpg", "voc/Annotations/a.xml", "cow")
    write("voc/JPEGImages/deep/b.png", "voc/Annotations/deep/b.xml", "cell")
    write("beside/d.jpg", "beside/d.xml", "cow")
    write("beside/c.png", "beside/c.xml", "cow")
    write("photos/e.jpg", "Annotations/e.xml")
    (tmp_path / "beside/._c.xml").write_bytes(b"\0")
    (tmp_path / "beside/__pycache__").mkdir()
    data = voc_datamodule(train_xml=tmp_path / "voc/Annotations", val_xml=tmp_path / "beside", split=None)
    data.check()
    assert data.class_names == ["cell", "cow"]
    assert data.train_dataset.image_files == [
        str(tmp_path / "voc/JPEGImages" / name) for name in ("a.jpg", "deep/b.png")
    ]
    assert [data.train_dataset[i][1]["labels"].tolist() for i in range(2)] == [[2], [1]]
    assert [image["file_name"] for image in data.train_dataset.ground_truth()["images"]] == ["a.jpg", "deep/b.png"]
    assert data.val_dataset.image_files == [str(tmp_path / "beside" / name) for name in ("c.png", "d.jpg")]
    files = {"val_xml": tmp_path / "Annotations", "val_images": tmp_path / "photos"}
    named = voc_datamodule(train_xml=tmp_path / "beside", **files)
    named.check()
    assert named.val_dataset.image_files == [str(tmp_path / "photos/e.jpg")]
    # No JPEGImages beside.
    assert files_in(tmp_path / "Annotations").folder == tmp_path / "Annotations"


def test_folders_that_are_links_are_read_once(write, tmp_path):
    write("elsewhere/a.jpg", "elsewhere/a.xml", "dog")
    write("train/b.webp", "train/b.xml", "cat")
    write("train/.hidden/c.jpg", "train/.hidden/c.xml", "cat")
    (tmp_path / "train/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "train")
    data = voc_datamodule(train_xml=tmp_path / "train", split=0.5)
    data.check()
    names = {os.path.relpath(name, tmp_path) for s in (data.train_dataset, data.val_dataset) for name in s.image_files}
    assert names == {"train/b.webp", "train/linked/a.jpg"}


def test_a_file_whose_name_is_no_text(write, tmp_path):
    write("train/a.jpg", "train/a.xml", "dog")
    try:
        (tmp_path / "train/a.xml").rename(tmp_path / "train" / os.fsdecode(b"na\xefve.xml"))
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(DataError, match="train: the name of a file in it is not UTF-8: 'na.*ve'"):
        voc_datamodule(train_xml=tmp_path / "train", split=0.5).check()


def test_classes_are_those_of_the_training_files(write, tmp_path):
    write("train/a.jpg", "train/a.xml", "dog", "Cat")
    write("val/b.jpg", "val/b.xml", "dog", "zebra")
    files = {"train_xml": tmp_path / "train", "val_xml": tmp_path / "val"}
    message = (
        r"val/b.xml: object 2 is of class 'zebra', not in class_names; .*with data.train_xml those of the training"
    )
    with pytest.raises(DataError, match=message):
        voc_datamodule(**files).check()
    data = voc_datamodule(**files, class_names=["dog", "zebra", "Cat"])
    data.check()
    assert data.val_dataset[0][1]["labels"].tolist() == [1, 2]
    write("val/b.jpg", "val/b.xml")
    assert voc_datamodule(**files).class_names == ["Cat", "dog"]
    write("train/a.jpg", "train/a.xml", "dog", "")
    with pytest.raises(DataError, match="train/a.xml: object 2 is of class ''"):
        voc_datamodule(**files).check()
    write("train/a.jpg", "train/a.xml")
    with pytest.raises(DataError, match="VOC annotations in .*train: none of its 1 files holds an object"):
        voc_datamodule(**files).check()


def test_a_root_without_image_sets(voc):
    for name in "abcd":
        root = voc(name, [("cat", (1, 1, 20, 20), "")])
    voc("e", [("cat", (1, 1, 20, 20), "")], image_set="val")

    def split(**settings):
        data = voc_datamodule(root, split=0.5, **settings)
        return sorted(data.train_dataset.image_files + data.val_dataset.image_files)

    images = [str(root / "JPEGImages" / f"{name}.jpg") for name in "abcde"]
    assert split() == images[:4]  # of train
    shutil.rmtree(root / "ImageSets")
    assert split() == images
    for settings, name in (({}, "train"), ({"train_set": "mine", "split": 0.5}, "mine")):
        with pytest.raises(DataError, match=rf"no image set '{name}'; data.split=0.8 splits all of Annotations/"):
            _ = voc_datamodule(root, **settings).train_dataset
