import warnings

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision import tv_tensors

from detpool.data.boxes import find_repeated
from detpool.data.coco import COCODataset, published_files
from detpool.data.transforms import detection_transform
from detpool.errors import DataError

# pycocotools, of numpy 2; shown in tests only.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def row(number, image_id=7, category_id=3, bbox=(10, 5, 20, 30), **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), "iscrowd": 0} | more


SQUARE = [[10, 5, 30, 5, 30, 35, 10, 35]]


def test_samples_and_ground_truth(coco):
    annotations = [row(0, 8, 90, area=12.5), row(5, 7, 3), row(9, 8, 3, (0.25, 0, 59.75, 40))]
    dataset = COCODataset(*published_files(coco(annotations, names=((90, "dog"), (3, "cat"))), "train"))
    assert (dataset.class_names, dataset.category_ids) == (["cat", "dog"], [3, 90])
    assert dataset.image_ids == [7, 8]
    image, target = dataset[1]
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[10, 5, 30, 35], [0.25, 0, 60, 40]]
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [2, 1]
    assert "masks" not in target
    assert (target["image_id"], target["orig_size"]) == (8, (40, 60))
    truth = dataset.ground_truth()
    assert truth["images"] == [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in (7, 8)]
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    kept = [(a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"]) for a in truth["annotations"]]
    assert kept == [
        (1, 7, 3, [10, 5, 20, 30], 600),
        (2, 8, 90, [10, 5, 20, 30], 12.5),
        (3, 8, 3, [0.25, 0, 59.75, 40], 2390),
    ]
    assert dataset[-1][1]["image_id"] == 8
    with pytest.raises(IndexError, match="index: got 2, the data set has 2 samples"):
        dataset[2]


def test_masks_of_every_encoding(coco):
    inside = np.zeros((40, 60), np.uint8)
    inside[5:35, 10:30] = 1
    encoded = coco_mask.encode(np.asfortranarray(inside))
    flat = inside.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    segmentations = [
        SQUARE,
        {"size": [40, 60], "counts": encoded["counts"].decode()},
        {"size": [40, 60], "counts": runs},
        [[10, 5, 20, 5, 20, 35, 10, 35], [20, 5, 30, 5, 30, 35, 20, 35]],
    ]
    root = coco([row(i + 1, segmentation=s) for i, s in enumerate(segmentations)])
    dataset = COCODataset(*published_files(root, "train"), masks=True)
    _, target = dataset[0]
    assert np.array_equal(target["masks"].dense().numpy(), np.stack([inside] * 4))
    assert dataset[1][1]["masks"].dense().shape == (0, 40, 60)
    assert [a["segmentation"] for a in dataset.ground_truth()["annotations"]] == segmentations
    # Without masks=True a segmentation is not even looked at.
    root = coco([row(1, segmentation="?")])
    assert "segmentation" not in COCODataset(*published_files(root, "train")).ground_truth()["annotations"][0]


def test_crowds_are_evaluated_only(coco):
    crowd = {"size": [40, 60], "counts": [0, 2400]}
    root = coco(
        [row(1, 7, iscrowd=1, segmentation=crowd), row(2, 8, segmentation=SQUARE), row(3, 9, bbox=(1, 1, 0, 0))], 3
    )
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        dataset = COCODataset(*published_files(root, "train"))
    assert [len(dataset[i][1]["labels"]) for i in range(3)] == [0, 1, 0]
    assert [a["iscrowd"] for a in dataset.ground_truth()["annotations"]] == [1, 0]
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        assert COCODataset(*published_files(root, "train"), drop_empty=True).image_ids == [8]


WHOLE, FRACTIONS = (10, 5, 20, 30), [(0.52, 0.31, 0.21, 0.26), (0.1, 0.2, 0.3, 0.4), (0, 0, 1, 1)]


@pytest.mark.parametrize(
    ("boxes", "kept", "messages"),
    [
        ([(10, 5, 0, 30), WHOLE, (10, 5, -3, 30), (10, -9, 5, 9)], 1, ["left out 3 of 4 objects", " in 7.png"]),
        (
            [(70, 5, 20, 30), (10, 50, 5, 5), WHOLE, (5, 5, 0, 4)],
            1,
            ["left out 3 of 4", "1 have none at all, 2 lie outside, as of another image or another size of it"],
        ),
        # Some fractions, as in files put together of two.
        (
            [*FRACTIONS, WHOLE, (5, 5, 20, 30)],
            5,
            ["2 of 5 objects are less than a pixel wide or high, 3 of them as if fractions"],
        ),
        (
            [WHOLE, (10, 5, 0.5, 30), (3, 3, 1, 1)],
            3,
            ["1 of 3 objects are less than a pixel wide or high: training leaves them out unless"],
        ),
        (
            [WHOLE, (40, 20, 58, 39), (2, 2, 12, 12), (30, 10, 60, 40)],
            4,
            ["2 of 4 objects reach more than a pixel beyond their", "as corners (x1, y1, x2, y2) all would lie within"],
        ),
    ],
)
def test_boxes_that_are_dropped_or_odd_are_counted_in_one_warning(coco, boxes, kept, messages):
    with pytest.warns(UserWarning, match="^.*instances_train.json: ") as caught:
        dataset = COCODataset(*published_files(coco([row(i, bbox=box) for i, box in enumerate(boxes)]), "train"))
    (warning,) = [str(item.message) for item in caught]
    assert [message for message in messages if message not in warning] == []
    assert len(dataset.ground_truth()["annotations"]) == len(dataset[0][1]["boxes"]) == kept


def test_what_is_there_twice_is_counted_in_one_warning(coco):
    def read(rows, **changes):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = COCODataset(*published_files(coco(rows, **changes), "train"))
        return dataset, [str(warning.message) for warning in caught]

    one = row(1, bbox=(1, 2, 10, 10))
    others = [{"image_id": 8}, {"category_id": 90}, {"bbox": [1, 2, 10, 10.5]}, {"iscrowd": 1}]
    assert read([one, *(one | other for other in others)])[1] == []
    dataset, (message,) = read([one, *(one | other for other in others), one, one])
    assert "2 of 6 objects have the class and the box of another one in their image" in message
    assert message.endswith("[1.0, 2.0, 10.0, 10.0] (x, y, width, height) in 7.png")
    assert len(dataset.ground_truth()["annotations"]) == 7

    images = [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in ((7, "7.png"), (8, "7.png"))]
    _, (message,) = read([one], images=images)
    assert "1 files are named by more than one image" in message


def test_repeated_objects_are_found_among_many():
    generator = torch.Generator().manual_seed(0)
    positions, labels = torch.randint(40, (2, 3000), generator=generator)
    boxes = torch.randint(3, (3000, 4), generator=generator).double()
    rows = [tuple(row) for row in torch.cat([positions[:, None], labels[:, None], boxes], 1).tolist()]
    expected = [i for i, row in enumerate(rows) if row in rows[:i]]
    assert 20 < len(expected) < 200
    assert find_repeated(positions, labels, boxes) == expected
    assert find_repeated(positions[:0], labels[:0], boxes[:0]) == []


def test_boxes_in_fractions_alone_are_refused(coco):
    message = (
        r"instances_train.json: all boxes lie within the first pixel .*0\.52.* in 7.png: they seem to be fractions"
    )
    with pytest.raises(DataError, match=message):
        COCODataset(*published_files(coco([row(i, bbox=box) for i, box in enumerate(FRACTIONS)]), "train"))


def test_images_without_objects(coco):
    root = coco([], count=3)
    dataset = COCODataset(
        *published_files(root, "train"), masks=True, transform=detection_transform(min_size=20, hflip=1.0)
    )
    image, target = dataset[2]
    assert image.shape == (3, 20, 30)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].dense().shape == (0, 20, 30)
    assert dataset.ground_truth()["annotations"] == []
    with pytest.raises(DataError, match="none of its 3 images has an object to train on"):
        COCODataset(*published_files(root, "train"), drop_empty=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 99}, "is of image 99, which is not among 'images'"),
        ({"image_id": "7"}, "is of image '7', which is not among 'images': it is a text, ids are integers"),
        ({"image_id": 2**64}, "is of image 18446744073709551616"),
        ({"image_id": None}, "is of image None"),
        ({"category_id": 4}, "is of category 4, which is not among 'categories'"),
        ({"category_id": "3"}, "is of category '3', which is not among 'categories': it is a text, ids are integers"),
        ({"category_id": 3.5}, "is of category 3.5"),
        ({"category_id": True}, "is of category True"),
        ({"bbox": [1, 2, 3]}, r"has bbox \[1, 2, 3\], expected \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "has bbox"),
        ({"bbox": None}, "has bbox None"),
        ({"bbox": ["10", 5, 20, 30]}, r"has bbox \['10', 5, 20, 30\], expected"),
        ({"bbox": [10, 5, 20, True]}, "has bbox"),
        ({"bbox": [10, 5, 20, 10**400]}, "has bbox"),
        ({"bbox": [10, 5, 20, 1e12]}, "has bbox"),
        ({"area": "big"}, "has area 'big', expected a number"),
        ({"area": -5}, "has area -5, expected a number of pixels, at least 0"),
        ({"area": True}, "has area True"),
        ({"area": 10**400}, "has area 1000.*, expected a number of pixels"),
        ({"iscrowd": "0"}, "has iscrowd '0', expected the number 0 or 1"),
        ({"iscrowd": 2}, "has iscrowd 2, expected"),
        ({"iscrowd": None}, "has iscrowd None"),
        ({"iscrowd": [0]}, r"has iscrowd \[0\]"),
        ({"segmentation": []}, r"has segmentation \[\], expected polygons or a run-length encoding"),
        ({"segmentation": None}, "has segmentation None"),
        ({"segmentation": [[1, 2, 3, 4]]}, "has a polygon that is not a list"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "has a polygon that is not a list"),
        (
            {"segmentation": {"size": [60, 40], "counts": "x"}},
            r"has a mask of \(height, width\) \[60, 40\] in an image",
        ),
        # What else may be wrong with one: tests/evaluation/test_segmentations.py
        ({"segmentation": {"size": [40, 60], "counts": [1, 2]}}, "do not sum up to the 2400 pixels"),
        ({"segmentation": {"size": [40, 60], "counts": "d"}, "iscrowd": 1}, "is cut short"),
    ],
)
def test_malformed_annotations(coco, changes, message):
    root = coco([row(1, segmentation=SQUARE), row(2, segmentation=SQUARE) | changes])
    with pytest.raises(DataError, match=rf"instances_train.json: annotations\[1\] \(id 2\) .*{message}"):
        COCODataset(*published_files(root, "train"), masks=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": None}, "'annotations' is missing or not a list"),
        ({"images": [1]}, "'images' is missing or not a list of objects"),
        ({"categories": []}, "'categories' is empty"),
        ({"categories": [{"id": 3, "name": "cat"}] * 2}, r"categories\[1\] is .* expected an integer 'id' of its own"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}]}, r"categories\[1\] .* has that name"),
        ({"categories": [{"id": 3, "name": "c\ud800"}]}, r"categories\[0\] is .*expected an integer 'id'"),
        ({"categories": [{"id": True, "name": "cat"}]}, r"categories\[0\] is"),
        ({"images": [{"id": 7, "height": 40, "width": 60}]}, r"images\[0\] is .* expected .* a 'file_name'"),
        ({"images": [{"id": 2**63, "file_name": "7.png"}]}, r"images\[0\] is .* expected an integer 'id'"),
        ({"images": [{"id": 7, "file_name": ""}]}, r"images\[0\] is .*'file_name'"),
        (
            {"images": [{"id": 7, "coco_url": "http://a/7.jpg", "neg_category_ids": []}]},
            r"LVIS is not supported, of which images\[0\] is with its 'neg_category_ids'",
        ),
        ({"images": [{"id": 7, "file_name": "\udfff.png"}]}, r"images\[0\] is"),
        ({"images": [{"id": 7, "file_name": "7.png"}]}, r"image 7 \(7.png\) has \[height, width\] \[None, None\]"),
        ({"images": [{"id": 7, "file_name": "7.png", "height": 40.5, "width": 60}]}, r"\[height, width\] \[40.5, 60\]"),
        ({"images": [{"id": 7, "file_name": "7.png", "height": 10**9, "width": 10**9}]}, "expected positive integers"),
    ],
)
def test_malformed_files(coco, changes, message):
    with pytest.raises(DataError, match=f"instances_train.json: .*{message}"):
        COCODataset(*published_files(coco([row(1)], **changes), "train"))


def test_what_is_missing_or_broken_is_named(coco, tmp_path):
    with pytest.raises(DataError, match=r"instances_train.json does not exist; data.root is to name the folder"):
        COCODataset(*published_files(tmp_path, "train"))
    root = coco([row(1)])
    with pytest.raises(DataError, match=r"no split 'trian'; did you mean 'train'\?"):
        COCODataset(*published_files(root, "trian"))
    path = root / "annotations/instances_train.json"
    whole = path.read_text()
    for content, message in (
        (whole[:100], "not valid JSON, it may be truncated: .*line 1"),
        ("\ufffe\0", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not COCO's annotation format"),
        (whole[:-1] + ', "annotations": []}', "holds 'annotations' 2 times"),
        ('{"annotations": [], ' + whole[1:], "holds 'annotations' 2 times"),
    ):
        path.write_text(content, "utf-16" if "\0" in content else "utf-8")
        with pytest.raises(DataError, match=f"instances_train.json: {message}"):
            COCODataset(*published_files(root, "train"))
    path.write_text(whole.replace('"cat"', '"annotations"'))  # a name
    assert COCODataset(*published_files(root, "train")).class_names == ["annotations", "dog"]


def test_run_lengths_as_floats_and_with_empty_runs_are_masks(coco):
    counts = [0.0, 40.0, 0, 40, 2320]
    dataset = COCODataset(
        *published_files(coco([row(1, segmentation={"size": [40, 60], "counts": counts})]), "train"), masks=True
    )
    expected = np.zeros((40, 60), np.uint8)
    expected[:, :2] = 1
    assert np.array_equal(dataset[0][1]["masks"].dense()[0].numpy(), expected)


def test_numbers_that_other_programs_write_differently(coco):
    rows = [row(1, 7.0, 3.0, iscrowd=False), row(2, 8, 90.0, iscrowd=1.0), row(3, 8, 3, iscrowd=True)]
    images = [{"id": float(i), "file_name": f"{i}.png", "height": 40.0, "width": 60.0} for i in (7, 8)]
    dataset = COCODataset(*published_files(coco(rows, images=images), "train"))
    assert dataset.image_ids == [7, 8]
    kept = [(a["image_id"], a["category_id"], a["iscrowd"]) for a in dataset.ground_truth()["annotations"]]
    assert kept == [(7, 3, 0), (8, 90, 1), (8, 3, 1)]
    assert dataset[0][1]["orig_size"] == (40, 60)


def test_ids_of_64_bits(coco):
    first, category = 1_700_000_000_000_000_000, 2**60
    images = [{"id": first + i, "file_name": f"{7 + i}.png", "height": 40, "width": 60} for i in range(2)]
    places = [(first, category), (first, category), (first + 1, category), (first + 1, category + 1)]
    rows = [row(number, *place) for number, place in zip((1, -1, "x", 1), places, strict=True)]
    root = coco(rows, images=images, names=((category, "cat"), (category + 1, "dog")))
    dataset = COCODataset(*published_files(root, "train"))
    assert (dataset.image_ids, dataset.category_ids) == ([first, first + 1], [category, category + 1])
    assert [(a["image_id"], a["category_id"]) for a in dataset.ground_truth()["annotations"]] == places
    assert dataset[1][1]["image_id"] == first + 1


def test_height_and_width_of_images_swapped(coco):
    images = [{"id": 7, "file_name": "7.png", "height": 60, "width": 40}]
    root = coco([row(1, bbox=(25, 5, 30, 30)), row(2, bbox=(20, 10, 15, 5))], images=images)
    with pytest.warns(UserWarning, match="1 of 2 objects .*if the height and width of the images were swapped"):
        dataset = COCODataset(*published_files(root, "train"), masks=False)
    with pytest.raises(DataError, match=r"7.png: is 40 x 60 \(height x width\), but its annotations say 60 x 40"):
        dataset[0]


def test_real_coco_agrees_with_pycocotools(shared_dir):
    root = shared_dir / "data" / "coco_cc"
    for split, images, objects in (("train2017", 56, 565), ("val2017", 49, 495)):
        dataset = COCODataset(*published_files(root, split), masks=True)
        truth = dataset.ground_truth()
        assert (len(dataset), len(truth["annotations"])) == (images, objects)
        oracle = COCO(str(root / "annotations" / f"instances_{split}.json"))
        names = {c["id"]: c["name"] for c in oracle.loadCats(oracle.getCatIds())}
        assert dict(zip(dataset.category_ids, dataset.class_names, strict=True)) == names
        assert len(names) == 80
        for i, image_id in enumerate(dataset.image_ids):
            _, target = dataset[i]
            rows = oracle.loadAnns(oracle.getAnnIds([image_id], iscrowd=False))
            masks = [oracle.annToMask(a) for a in rows]
            assert [dataset.category_ids[label - 1] for label in target["labels"]] == [a["category_id"] for a in rows]
            assert len(target["masks"]) == len(masks)
            assert all(np.array_equal(*pair) for pair in zip(target["masks"].dense().numpy(), masks, strict=True))
            for box, a in zip(target["boxes"].tolist(), rows, strict=True):
                x, y, w, h = a["bbox"]
                assert box == pytest.approx([x, y, x + w, y + h], abs=0.02)
        published = {(a["image_id"], tuple(a["bbox"]), a["iscrowd"], a["area"]) for a in oracle.anns.values()}
        assert {(a["image_id"], tuple(a["bbox"]), a["iscrowd"], a["area"]) for a in truth["annotations"]} == published


def test_real_nuclei(shared_dir):
    files = published_files(shared_dir / "data" / "nuclei", "val")
    dataset = COCODataset(*files, masks=True, transform=detection_transform(min_size=128))
    assert len(dataset) == 60
    assert len(dataset.ground_truth()["annotations"]) == 1992
    for i in range(0, 60, 6):
        image, target = dataset[i]
        assert image.shape == (3, 128, 128)
        for mask, (x1, y1, x2, y2) in zip(target["masks"].dense(), target["boxes"].tolist(), strict=True):
            ys, xs = mask.nonzero(as_tuple=True)
            if len(xs):
                assert (xs.min() + 1.01 >= x1, ys.min() + 1.01 >= y1) == (True, True)
                assert (xs.max() <= x2 + 0.01, ys.max() <= y2 + 0.01) == (True, True)
