"""Some of the images and some of the classes of a data set, against plain loops over its file."""

import json

import pytest
import torch

from detpool.data import cache
from detpool.data.coco import COCODataset, coco_datamodule, published_files
from detpool.data.packed import PackedStrings
from detpool.data.selection import Part, split_in_two
from detpool.data.voc import voc_datamodule
from detpool.errors import DataError
from detpool.evaluation.evaluator import DetectionEvaluator

CAT, DOG, COW = 3, 90, 17
NAMES = ((CAT, "cat"), (DOG, "dog"), (COW, "cow"))


def row(number, image_id, category_id, **more):
    bbox = [number % 20, 2, 5 + number % 11, 7]
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "segmentation": [polygon],
    } | more


# Images 7 to 12: cats and dogs, cats, cows, a crowd of dogs, a dog of no width, nothing.
ROWS = [
    row(1, 8, CAT),
    row(2, 7, DOG),
    row(3, 7, CAT),
    row(4, 9, COW),
    row(5, 10, DOG, iscrowd=1, segmentation={"size": [40, 60], "counts": [0, 40, 2360]}),
    row(6, 7, DOG),
    row(7, 9, COW),
    row(8, 11, DOG, bbox=[3, 3, 0, 5]),
]


@pytest.fixture
def animals(coco, monkeypatch):
    monkeypatch.setattr(cache, "_WORTHWHILE", 0)
    return published_files(coco(ROWS, count=6, names=NAMES), "train")


def kept(classes, *, crowds=True):
    """What of ROWS a data set of some classes holds: (image, category, box), in the order of the images."""
    ids = [identity for name in classes for identity, known in NAMES if known == name]
    rows = [r for r in ROWS if r["category_id"] in ids and r["bbox"][2] > 0 and (crowds or not r.get("iscrowd"))]
    return sorted(((r["image_id"], r["category_id"], r["bbox"]) for r in rows), key=lambda found: found[0])


@pytest.mark.filterwarnings("ignore:.*left out 1 of")
@pytest.mark.parametrize("classes", [["dog", "cat"], ["cat", "dog"], ["cow"], ["cow", "dog", "cat"]])
@pytest.mark.parametrize("start", ["first", "from the cache"])
def test_objects_of_other_classes_are_left_out(animals, classes, start):
    if start == "from the cache":
        COCODataset(*animals, masks=True)
    dataset = COCODataset(*animals, masks=True, classes=classes)
    ids = {name: identity for identity, name in NAMES}
    assert dataset.class_names == classes
    assert dataset.category_ids == [ids[name] for name in classes]
    assert dataset.image_ids == [7, 8, 9, 10, 11, 12]
    truth = dataset.ground_truth()
    assert truth["categories"] == [{"id": ids[name], "name": name} for name in classes]
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in truth["annotations"]] == kept(classes)
    segmentations = {tuple(r["bbox"]): r["segmentation"] for r in ROWS}
    assert all(a["segmentation"] == segmentations[tuple(a["bbox"])] for a in truth["annotations"])
    found = []
    for i in range(6):
        _, target = dataset[i]
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            found.append((target["image_id"], ids[classes[label - 1]], [x1, y1, x2 - x1, y2 - y1]))
        assert target["masks"].dense().flatten(1).sum(1).tolist() == [
            w * h for _, _, w, h in (box for image, _, box in found if image == target["image_id"])
        ]
    assert found == kept(classes, crowds=False)


@pytest.mark.filterwarnings("ignore:.*left out 1 of")
def test_metrics_are_of_the_kept_classes(animals):
    """All objects found but for the cows, by labels that stand in another order than the ids."""
    dataset = COCODataset(*animals, classes=["dog", "cow", "cat"])
    evaluator = DetectionEvaluator(dataset)
    for i in range(len(dataset)):
        _, target = dataset[i]
        found = target["labels"] != 2
        prediction = {
            "boxes": target["boxes"][found],
            "labels": target["labels"][found],
            "scores": torch.ones(found.sum()),
        }
        evaluator.update([prediction], [target], [(40, 60)])
    metrics = evaluator.compute()
    assert {name: metrics[f"AP/{name}"] for name in dataset.class_names} == {"dog": 1, "cat": 1, "cow": 0}


@pytest.mark.filterwarnings("ignore:.*left out 1 of")
def test_images_without_an_object_of_the_classes_are_left_out_if_so_wished(animals):
    def images(**options):
        return COCODataset(*animals, **options).image_ids

    assert images(classes=["dog"], drop_others="images") == [7, 10]  # a crowd is to be ignored there
    assert images(classes=["dog"], drop_others="images", drop_empty=True) == [7]
    assert images(classes=["dog"], drop_empty=True) == [7]
    assert images(classes=["cat", "cow"], drop_others="images") == [7, 8, 9]
    parts = [
        images(classes=["cat", "cow"], drop_others="images", part=part, drop_empty=drop_empty)
        for part in split_in_two(0.5, 0)
        for drop_empty in (False, True)
    ]
    assert parts == [[8], [8], [7, 9], [7, 9]]
    content = json.loads(animals[0].read_text())
    animals[0].write_text(json.dumps(content | {"annotations": [r for r in ROWS if r["category_id"] == CAT]}))
    with pytest.raises(DataError, match=r"train.json: none of its 6 images has an object of dog, cow to train on"):
        images(classes=["dog", "cow"], drop_empty=True)


def test_classes_that_mean_nothing(animals):
    with pytest.raises(DataError, match=r"no class 'dgo', .* did you mean 'dog'\? \(its classes are cat, cow, dog\)"):
        COCODataset(*animals, classes=["cat", "dgo"])
    with pytest.raises(DataError, match=r"no class 'zebra', which data.classes names; choose from cat, cow, dog$"):
        COCODataset(*animals, classes=["zebra"])
    for options, message in (
        ({"classes": []}, r"data.classes=\[\]: need at least one"),
        ({"classes": ["cat", "cat"]}, r"data.classes=\['cat', 'cat'\]: need .* each once"),
        ({"drop_others": "images"}, "data.drop_others=images: needs data.classes"),
        ({"classes": ["cat"], "drop_others": "image"}, "data.drop_others=image: choose from objects, images"),
    ):
        with pytest.raises(ValueError, match=message):
            COCODataset(*animals, **options)
        with pytest.raises(ValueError, match=message):
            voc_datamodule(animals[1], **options)


def test_classes_of_voc(voc):
    root = voc("a", [("cat", (1, 1, 20, 20), ""), ("dog", (3, 3, 9, 9), ""), ("person", (5, 5, 8, 8), "")])
    voc("b", [("cow", (1, 1, 20, 20), "")])
    voc("c", [("person", (2, 2, 20, 20), "")], image_set="val")
    voc("d", [("cow", (2, 2, 20, 20), "")], image_set="val")
    data = voc_datamodule(root, classes=["person", "dog"], drop_others="images")
    assert (data.class_names, data.category_ids) == (["person", "dog"], [15, 12])
    assert data.train_dataset.image_ids == [1]
    assert data.train_dataset[0][1]["labels"].tolist() == [2, 1]
    assert [a["category_id"] for a in data.train_dataset.ground_truth()["annotations"]] == [12, 15]
    assert data.val_dataset.image_ids == [1]
    with pytest.raises(
        DataError, match=r"VOC image set val in .* has no class 'persn', .*mean 'person'\?.* aeroplane,"
    ):
        _ = voc_datamodule(root, classes=["persn"]).val_dataset


def names_of(dataset):
    return [image["file_name"] for image in dataset.ground_truth()["images"]]


def test_one_file_is_split_by_the_names_of_images(coco):
    """Whatever else is in the file, and in whatever order."""
    rows = [row(i, 7 + i, CAT) for i in range(10)]
    root = coco(rows, count=10)
    path, images = published_files(root, "train")

    def split(fraction=0.8, seed=0, **options):
        data = coco_datamodule(train_json=path, train_images=images, split=fraction, split_seed=seed, **options)
        assert data.test_dataset is data.val_dataset
        return names_of(data.train_dataset), names_of(data.val_dataset)

    train, val = split()
    assert sorted(train + val) == sorted(f"{i}.png" for i in range(7, 17))
    # The last of `for i in $(seq 7 16); do echo $(printf "0 $i.png" | sha256sum) $i; done | sort`
    assert val == ["9.png", "16.png"]
    assert [len(part) for part in split(0.5)] == [5, 5]
    assert [len(part) for part in split(0.999)] == [9, 1]
    assert [len(part) for part in split(0.001)] == [1, 9]
    assert set(split(0.5)[0]) < set(train)
    assert len({tuple(split(seed=seed)[1]) for seed in range(10)}) > 5
    assert split(seed=3) == split(seed=3, drop_empty=False) != (train, val)

    content = json.loads(path.read_text())
    content["images"] = [image | {"id": 100 - image["id"]} for image in reversed(content["images"])]
    content["annotations"] = [row(1, 100 - 7, DOG), row(2, 100 - 11, CAT)]
    path.write_text(json.dumps(content))
    again = split(drop_empty=False)
    assert [sorted(part) for part in again] == [sorted(train), sorted(val)]


def test_a_split_of_voc_is_of_the_training_set(voc):
    names = [f"im{i}" for i in range(6)]
    for name in names:
        root = voc(name, [("cat", (1, 1, 20, 20), "")])
    voc("other", [("cat", (1, 1, 20, 20), "")], image_set="test")
    data = voc_datamodule(root, split=0.5, test_set="test")
    parts = [names_of(data.train_dataset), names_of(data.val_dataset)]
    assert [len(part) for part in parts] == [3, 3]
    assert sorted(parts[0] + parts[1]) == [f"JPEGImages/{name}.jpg" for name in names]
    assert names_of(data.test_dataset) == ["JPEGImages/other.jpg"]
    # The ids are those of the whole.
    assert sorted(data.train_dataset.image_ids + data.val_dataset.image_ids) == [1, 2, 3, 4, 5, 6]


def test_images_of_one_name_are_in_one_part():
    names = PackedStrings.pack(["a", "b", "a", "c", "b", "a"])
    for seed in range(20):
        train, val = split_in_two(0.5, seed)
        assert train is not None
        assert val is not None
        chosen = train.find("", names)
        assert torch.equal(val.find("", names), ~chosen)
        assert chosen[0] == chosen[2] == chosen[5]
        assert chosen[1] == chosen[4]
        assert chosen[[0, 1, 3]].sum() == 2


def test_images_that_are_added_move_few_others():
    names = [f"{i}.jpg" for i in range(1000)]
    part = Part(0.8, training=True)
    before = part.find("", PackedStrings.pack(names))
    after = part.find("", PackedStrings.pack([*names, *(f"more/{i}.jpg" for i in range(100))]))
    assert (before.sum(), after.sum()) == (800, 880)
    assert (before != after[:1000]).sum() < 40


def test_splits_that_mean_nothing(coco):
    path, images = published_files(coco([row(1, 7, CAT)], count=1), "train")
    for fraction in (0, 1, -0.5, 80, float("nan")):
        with pytest.raises(ValueError, match=rf"data.split={fraction}: need the fraction of images to train on"):
            coco_datamodule(train_json=path, split=fraction)
    with pytest.raises(
        DataError, match=r"train.json \(validation part\): has 1 images, data.split=0.8 needs at least two"
    ):
        _ = coco_datamodule(train_json=path, train_images=images, split=0.8).val_dataset


def parents(names, above, rows):
    return {
        "categories": [
            {"id": i, "name": n, "supercategory": s} for i, (n, s) in enumerate(zip(names, above, strict=True))
        ],
        "annotations": rows,
    }


ROBOFLOW = ["cells", "RBC", "WBC"], ["none", "cells", "cells"]


def test_a_category_that_only_groups_the_others_is_no_class(coco, monkeypatch):
    root = coco([], **parents(*ROBOFLOW, [row(1, 7, 1), row(2, 7, 2)]))
    files = published_files(root, "train")
    monkeypatch.setattr(cache, "_WORTHWHILE", 0)
    for _ in range(2):  # the second from the cache
        with pytest.warns(UserWarning, match=r"train.json: left out 1 of 3 categories, 'cells' \(id 0\)") as caught:
            dataset = COCODataset(*files)
        assert len(caught) == 1
        assert (dataset.class_names, dataset.category_ids) == (["RBC", "WBC"], [1, 2])
        assert dataset[0][1]["labels"].tolist() == [1, 2]
        assert [a["category_id"] for a in dataset.ground_truth()["annotations"]] == [1, 2]
    assert COCODataset(*files, classes=["WBC", "cells"]).category_ids == [2, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("names", "above", "used"),
    [
        (["person", "car"], ["person", "vehicle"], [1]),  # COCO's
        (["person", "rider"], ["person", "person"], [1]),
        (["person"], ["person"], []),
        (["cells"], ["none"], []),
        (["cells", "RBC", "dust"], ["none", "cells", "none"], [1]),  # it does not group all
        (*ROBOFLOW, [0, 1]),
    ],
)
def test_categories_that_are_classes(coco, names, above, used):
    rows = [row(i + 1, 7, identity) for i, identity in enumerate(used)]
    assert COCODataset(*published_files(coco([], **parents(names, above, rows)), "train")).class_names == names


@pytest.mark.filterwarnings("ignore:.*left out 1 of 3 categories")
def test_splits_that_disagree_on_classes_say_where(coco, tmp_path):
    root = coco([], **parents(*ROBOFLOW, [row(1, 7, 1), row(2, 8, 2)]))
    path, images = published_files(root, "train")
    other = tmp_path / "other.json"
    content = json.loads(path.read_text())
    files = {"train_json": path, "train_images": images, "val_json": other, "val_images": images}

    def refused(*lines, **changes):
        other.write_text(json.dumps(content | changes))
        with pytest.raises(DataError) as caught:
            _ = coco_datamodule(**files).train_dataset
        message = str(caught.value)
        assert message.startswith(
            "the training set and the validation set name different classes (category id: name): "
        )
        assert [line for line in lines if line not in message] == []
        assert "RBC" not in message

    refused(": {0: 'cells'} are in the validation set alone", annotations=[row(1, 7, 0)])
    third = [*content["categories"][:2], {"id": 2, "name": "wbc", "supercategory": "cells"}]
    refused("{2: 'WBC'} are in the training set alone and {2: 'wbc'} are in the validation set alone", categories=third)
