from functools import partial

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detpool.data.coco import coco_datamodule
from detpool.data.shapes import shapes_datamodule
from detpool.data.transforms import check_eval_transform, detection_transform
from detpool.data.voc import voc_datamodule
from detpool.object_masks import ObjectMasks


def sample(height=60, width=100, boxes=((10, 20, 30, 50), (40, 10, 90, 30))):
    """A picture in which object k is the only thing of brightness 50 * k."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        image[:, y1:y2, x1:x2] = 50 * (k + 1)
        masks[k, y1:y2, x1:x2] = 1
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.arange(1, len(boxes) + 1),
        "masks": ObjectMasks.from_dense(masks),
        "image_id": 7,
        "orig_size": (height, width),
    }
    return tv_tensors.Image(image), target


def assert_in_step(image, target):
    """Boxes, labels and masks all point at the objects of the picture."""
    assert image.dtype == torch.uint8
    assert (len(target["masks"]), *target["masks"].size) == (len(target["labels"]), *image.shape[1:])
    assert tuple(target["boxes"].canvas_size) == tuple(image.shape[1:])
    for label, box, mask in zip(
        target["labels"].tolist(), target["boxes"].tolist(), target["masks"].dense(), strict=True
    ):
        x1, y1, x2, y2 = box
        middle = image[:, int((y1 + y2) / 2), int((x1 + x2) / 2)]
        assert (middle.int() - 50 * label).abs().max() <= 3
        ys, xs = mask.nonzero(as_tuple=True)
        extent = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        torch.testing.assert_close(torch.tensor(box), extent.float(), atol=1.01, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "shape", "scale"),
    [
        ({}, (60, 100), (1, 1)),
        ({"min_size": 120}, (120, 200), (2, 2)),
        ({"min_size": 120, "max_size": 150}, (90, 150), (1.5, 1.5)),
        ({"min_size": 30, "max_size": 500}, (30, 50), (0.5, 0.5)),
        ({"size": [120, 100]}, (120, 100), (2, 1)),
    ],
)
def test_resize(arguments, shape, scale):
    image, target = detection_transform(**arguments)(*sample())
    assert image.shape == (3, *shape)
    expected = torch.tensor([[10.0, 20, 30, 50], [40, 10, 90, 30]]) * torch.tensor([scale[1], scale[0]] * 2)
    torch.testing.assert_close(target["boxes"].as_subclass(torch.Tensor), expected)
    assert_in_step(image, target)
    assert (target["image_id"], target["orig_size"]) == (7, (60, 100))


def test_flip():
    image, target = detection_transform(hflip=1.0)(*sample())
    assert target["boxes"].tolist() == [[70, 20, 90, 50], [10, 10, 60, 30]]
    assert_in_step(image, target)
    flipped = [detection_transform(hflip=0.5)(*sample())[1]["boxes"][0, 0].item() for _ in range(40)]
    assert set(flipped) == {10.0, 70.0}


def test_several_sizes_and_scale_jitter_of_the_shorter_side():
    transform = detection_transform(min_size=[30, 45, 60])
    assert {transform(*sample())[0].shape[1] for _ in range(60)} == {30, 45, 60}
    transform = detection_transform(min_size=60, max_size=140, scale_range=[0.5, 1.5])
    shapes = set()
    for _ in range(100):
        image, target = transform(*sample())
        assert_in_step(image, target)
        assert image.shape[2] / image.shape[1] == pytest.approx(5 / 3, rel=0.04)
        shapes.add(image.shape[1])
    assert min(shapes) < 35
    assert max(shapes) == 84  # max_size 140 / (5 / 3)
    assert len(shapes) > 20


def test_large_scale_jitter_gives_one_size_and_drops_what_is_cropped_away():
    torch.manual_seed(0)
    transform = detection_transform(size=[60, 100], scale_range=[0.3, 3.0])
    counts, widths = set(), []
    for _ in range(60):
        image, target = transform(*sample())
        assert image.shape == (3, 60, 100)
        assert_in_step(image, target)
        counts.add(len(target["labels"]))
        widths += (target["boxes"][:, 2] - target["boxes"][:, 0]).tolist()
    assert counts >= {1, 2}
    assert min(widths) < 12
    assert max(widths) > 60


def test_photometric_changes_colours_only():
    torch.manual_seed(0)
    original = sample()
    results = [detection_transform(photometric=True)(*sample()) for _ in range(8)]
    assert any(not torch.equal(image, original[0]) for image, _ in results)
    assert all(image.dtype == torch.uint8 for image, _ in results)
    assert all(torch.equal(target["boxes"], original[1]["boxes"]) for _, target in results)


def test_images_as_files_have_them_are_resized_without_a_copy_to_the_pixels_of_any():
    rows = torch.randint(256, (60, 100, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = tv_tensors.Image(rows.permute(2, 0, 1))
    for side in (37, 119):
        transform = detection_transform(min_size=side, hflip=1.0)
        (found, _), (expected, _) = (transform(each, sample()[1]) for each in (image, image.contiguous()))
        assert torch.equal(found, expected)
        assert found.permute(1, 2, 0).is_contiguous()


def test_colours_are_distorted_before_the_image_is_resized():
    image, target = sample()
    for seed in range(4):
        torch.manual_seed(seed)
        found, _ = detection_transform(min_size=120, photometric=True)(image, target)
        torch.manual_seed(seed)
        assert torch.equal(found, v2.functional.resize(v2.RandomPhotometricDistort()(image), [120, 200]))


def test_vanishing_objects_go_with_their_labels_and_masks():
    boxes = ((10, 20, 30, 50), (50, 10, 51, 12), (40, 10, 90, 30))
    _, target = detection_transform(min_size=20)(*sample(boxes=boxes))
    assert target["labels"].tolist() == [1, 3]
    assert len(target["masks"]) == len(target["boxes"]) == 2


def test_boxes_are_clamped_to_the_image():
    image, target = sample()
    target["boxes"][0] = torch.tensor([-5.0, 20, 30, 70])
    _, target = detection_transform()(image, target)
    assert target["boxes"][0].tolist() == [0, 20, 30, 60]


def test_bad_arguments_are_named():
    for arguments, named in (
        ({"min_size": 10, "size": [5, 5]}, "min_size and size"),
        ({"max_size": 10}, "max_size"),
        ({"min_size": 20, "max_size": 10}, "max_size"),
        ({"min_size": 0}, "min_size"),
        ({"min_size": []}, "min_size"),
        ({"size": [10]}, "size"),
        ({"hflip": 1.5}, "hflip"),
        ({"min_size": 20, "scale_range": [0, 1]}, "scale_range"),
        ({"min_size": 20, "scale_range": [2, 1]}, "scale_range"),
        ({"scale_range": [0.5, 1]}, "scale_range"),
        ({"min_size": [20, 30], "scale_range": [0.5, 1]}, "scale_range"),
    ):
        with pytest.raises(ValueError, match=f"^{named}: got"):
            detection_transform(**arguments)


def test_transforms_of_evaluation_keep_objects_where_they_are():
    check_eval_transform(None)
    check_eval_transform(detection_transform(size=[64, 64], photometric=True))
    for arguments, named in (
        ({"hflip": 1.0}, "hflip would move"),
        ({"size": [64, 64], "scale_range": [0.5, 1]}, "scale_range with size would"),
    ):
        with pytest.raises(ValueError, match=f"^data.eval_transform: {named}"):
            check_eval_transform(detection_transform(**arguments))
    for build in (shapes_datamodule, partial(coco_datamodule, root="."), partial(voc_datamodule, root=".")):
        with pytest.raises(ValueError, match="^data.eval_transform: hflip"):
            build(eval_transform=detection_transform(hflip=0.5))
