import hashlib

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision import tv_tensors

from detpool.data.shapes import ShapesDataset

# pycocotools, of numpy 2; shown in tests only.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_sample_keeps_the_contract():
    dataset = ShapesDataset("train", 8, size=(96, 160), masks=True)
    for i in range(8):
        image, target = dataset[i]
        count = len(target["labels"])
        for value, kind, dtype, shape in (
            (image, tv_tensors.Image, torch.uint8, (3, 96, 160)),
            (target["boxes"], tv_tensors.BoundingBoxes, torch.float32, (count, 4)),
            (target["labels"], torch.Tensor, torch.int64, (count,)),
            (target["masks"].dense(), torch.Tensor, torch.uint8, (count, 96, 160)),
        ):
            assert (type(value), value.dtype, value.shape) == (kind, dtype, shape)
        assert 1 <= target["labels"].min() <= target["labels"].max() <= 6
        assert (target["image_id"], target["orig_size"]) == (dataset.image_ids[i], (96, 160))
        assert target["boxes"].canvas_size == (96, 160)
        assert target["masks"].dense().sum(0).max() == 1
        for mask, (x1, y1, x2, y2) in zip(target["masks"].dense(), target["boxes"].tolist(), strict=True):
            ys, xs = np.nonzero(mask.numpy())
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x1, y1, x2, y2)


def test_masks_show_the_shapes_that_are_drawn():
    # Where all objects are circles each mask, unless hidden or cut, has a circle's area and extent.
    dataset = ShapesDataset("train", 40, classes=["circle"], num_objects=(1, 1), masks=True)
    seen = 0
    for i in range(40):
        image, target = dataset[i]
        x1, y1, x2, y2 = target["boxes"][0].tolist()
        if min(x1, y1) == 0 or max(x2, y2) == 128:
            continue
        seen += 1
        assert abs((x2 - x1) - (y2 - y1)) <= 1
        area = int(target["masks"].dense().sum())
        assert area == pytest.approx(np.pi / 4 * (x2 - x1) * (y2 - y1), rel=0.08)
        # A ring of pixels inside the outline is the dark rim, and differs from the background just outside.
        assert image[:, target["masks"].dense()[0] == 1].float().std() > 1
    assert seen >= 20


def test_every_class_and_size_occurs_and_nothing_is_nearly_hidden():
    dataset = ShapesDataset("train", 300, masks=True)
    truth = dataset.ground_truth()
    labels = [a["category_id"] for a in truth["annotations"]]
    counts = np.bincount(labels, minlength=7)[1:]
    assert counts.min() > 0.7 * counts.mean()
    sides = np.array([a["bbox"][2:] for a in truth["annotations"]])
    assert sides.min() >= 10
    assert np.sqrt(sides.prod(1)).max() > 50
    per_image = np.bincount([a["image_id"] for a in truth["annotations"]])[1:]
    assert per_image.min() >= 1
    assert per_image.max() == 7


def test_splits_and_seeds_differ_and_length_does_not_matter():
    first = [ShapesDataset("train", n, seed=0)[3][0] for n in (4, 10)]
    assert torch.equal(*first)
    for other in (ShapesDataset("val", 4, seed=0), ShapesDataset("train", 4, seed=1)):
        assert not torch.equal(first[0], other[3][0])


def test_pictures_are_the_same_everywhere():
    # Recorded on x86-64, the same under numpy 1.26 and 2.4, with and without AVX. A change of the drawing changes every
    # published number, and this one with them.
    dataset = ShapesDataset("val", 8, size=(64, 80), masks=True)
    digest = hashlib.sha256()
    for i in range(8):
        image, target = dataset[i]
        digest.update(image.numpy().tobytes())
        digest.update(target["masks"].dense().numpy().tobytes())
        digest.update(target["labels"].numpy().tobytes())
    assert digest.hexdigest()[:16] == "c5122442517bc374"


def test_ground_truth_is_what_samples_show():
    dataset = ShapesDataset("val", 15, masks=True, classes=["star", "ring"])
    truth = dataset.ground_truth()
    assert [c["name"] for c in truth["categories"]] == ["star", "ring"] == dataset.class_names
    assert [image["id"] for image in truth["images"]] == dataset.image_ids
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    for i, image_id in enumerate(dataset.image_ids):
        _, target = dataset[i]
        rows = [a for a in truth["annotations"] if a["image_id"] == image_id]
        boxes = torch.tensor([a["bbox"] for a in rows])
        boxes[:, 2:] += boxes[:, :2]
        assert torch.equal(boxes, target["boxes"].as_subclass(torch.Tensor))
        assert [a["category_id"] for a in rows] == target["labels"].tolist()
        for row, mask in zip(rows, target["masks"].dense().numpy(), strict=True):
            assert np.array_equal(coco_mask.decode(row["segmentation"]), mask)
            assert row["area"] == mask.sum()


def test_no_shape_is_hidden_as_a_whole_even_if_others_may_hide_it():
    dataset = ShapesDataset(num_objects=(100, 120), object_size=(0.3, 0.5), min_visible=0, masks=True)
    masks = dataset[0][1]["masks"].dense()
    assert len(masks) > 80
    assert masks.flatten(1).any(1).all()


def test_bigger_pictures_show_the_same_scene():
    small, big = (ShapesDataset("val", 5, size=size).ground_truth()["annotations"] for size in (128, 256))
    small_box, big_box = (torch.tensor([a["bbox"] for a in rows if a["image_id"] == 1]) for rows in (small, big))
    torch.testing.assert_close(big_box, 2 * small_box, atol=3, rtol=0)


def test_bad_arguments_are_named():
    for argument, value in (
        ("split", "trian"),
        ("num_images", 0),
        ("size", 8),
        ("size", (64, 64, 3)),
        ("num_objects", (3,)),
        ("object_size", (0.5,)),
        ("num_objects", (3, 2)),
        ("num_objects", (1, 256)),
        ("object_size", (0.01, 0.5)),
        ("min_visible", 2),
        ("seed", -1),
        ("classes", ["circle", "hexagon"]),
        ("classes", ["circle", "circle"]),
    ):
        with pytest.raises(ValueError, match=f"^{argument}: got"):
            ShapesDataset(**{argument: value})
