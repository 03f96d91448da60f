"""Compact masks against pycocotools' pixels and torchvision's transforms of them."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torchvision import tv_tensors
from torchvision.transforms import v2

from detpool.data.dataset import DetectionDataset
from detpool.data.transforms import SanitizeObjects, detection_transform
from detpool.object_masks import ObjectMasks

SIZE = (61, 83)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def segmentations():
    """Of every kind, in and beyond an image of `SIZE`, one of no pixel; and what pycocotools makes of each."""
    rng = np.random.default_rng(0)
    polygons = [[rng.uniform(-20, 100, 2 * n).round(2).tolist()] for n in (3, 4, 9, 30)]
    polygons += [[rng.uniform(10, 30, 8).tolist(), rng.uniform(40, 60, 6).tolist()], [[5, 5, 5.1, 5, 5.1, 5.1]]]
    noise = (rng.random(SIZE) < 0.3).astype(np.uint8)
    columns = np.zeros(SIZE, np.uint8)
    columns[:, 3:6] = 1  # a run of several columns
    expected = [rle.decode(rle.merge(rle.frPyObjects(polygon, *SIZE))) for polygon in polygons]
    expected += [noise, columns, np.zeros(SIZE, np.uint8), np.ones(SIZE, np.uint8)]
    encoded = [rle.encode(np.asfortranarray(mask)) for mask in expected[len(polygons) :]]
    return [*polygons, *encoded], torch.from_numpy(np.stack(expected))


def sample(masks, count):
    height, width = SIZE
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([width, height]) * 0.8
    boxes = torch.cat([corner, corner + 8], 1)
    return tv_tensors.Image(torch.zeros(3, *SIZE, dtype=torch.uint8)), {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=SIZE),
        "labels": torch.arange(count),
        "masks": masks,
    }


def test_pixels_are_pycocotools():
    given, expected = segmentations()
    masks = ObjectMasks.from_segmentations(given, SIZE)
    assert (len(masks), masks.size) == (len(given), SIZE)
    assert torch.equal(masks.dense(), expected)
    assert masks.extents[[7, 8], :4].tolist() == [[3, 0, 3, 61], [0, 0, 1, 1]]  # the columns, and nothing
    assert torch.equal(ObjectMasks.from_dense(expected).dense(), expected)
    none = ObjectMasks.from_segmentations([], SIZE)
    assert none.dense().shape == (0, *SIZE)
    objects, corners = torch.tensor([6, 1, 6]), torch.tensor([[0, 0], [70, 50], [33, 7]])
    parts = masks.to("cpu").crop(objects, corners, (11, 13))
    for part, row, (x, y) in zip(parts, objects, corners, strict=True):
        assert torch.equal(part, expected[row, y : y + 11, x : x + 13])


@pytest.mark.parametrize(
    "transform",
    [
        detection_transform(min_size=[40, 100, 157], max_size=170, hflip=0.5, photometric=True),
        detection_transform(size=[70, 64], hflip=0.5),
        detection_transform(size=[70, 90], scale_range=[0.4, 2.5]),
        v2.Compose(
            [
                v2.Resize(47, max_size=50),
                v2.RandomVerticalFlip(0.5),
                v2.RandomZoomOut(),
                v2.Pad([2, 5]),
                v2.Pad(1),
                SanitizeObjects(),
            ]
        ),
        v2.Compose([v2.RandomIoUCrop(), SanitizeObjects()]),
    ],
    ids=["shortest side", "size", "large-scale jitter", "resize, flip and zoom out", "IoU crop"],
)
def test_transforms_do_to_them_what_they_do_to_pixels(transform):
    given, dense = segmentations()
    counts = set()
    for seed in range(8):
        results = []
        for masks in (ObjectMasks.from_segmentations(given, SIZE), tv_tensors.Mask(dense)):
            torch.manual_seed(seed)
            results.append(transform(*sample(masks, len(dense))))
        (image, compact), (_, expected) = results
        assert torch.equal(compact["labels"], expected["labels"])
        assert (len(compact["masks"]), compact["masks"].size) == (len(expected["masks"]), image.shape[1:])
        assert torch.equal(compact["masks"].dense(), expected["masks"])
        counts.add(len(compact["masks"]))
    assert max(counts) > 1


class OneSample(DetectionDataset):
    image_ids = [1]  # noqa: RUF012

    def __len__(self):
        return 1

    def load(self, index):
        given, _ = segmentations()
        image, target = sample(ObjectMasks.from_segmentations(given, SIZE), len(given))
        target["boxes"][0, 2:] = target["boxes"][0, :2]
        return image, target

    def ground_truth(self):
        return {}


def test_transforms_that_would_leave_them_behind_are_refused():
    with pytest.raises(TypeError, match="resized, flipped, cropped and padded, nothing else"):
        OneSample(v2.RandomRotation(30))[0]
    with pytest.raises(ValueError, match="gave 9 boxes .* but 10 masks .*SanitizeObjects"):
        OneSample(v2.SanitizeBoundingBoxes())[0]
    assert len(OneSample(SanitizeObjects())[0][1]["masks"]) == 9
