"""Masks of boxes, encoded as where they lie in an image, against torchvision's, which pastes them into arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detpool.evaluation import to_detections
from detpool.evaluation.pasting import encode_in_boxes

# pycocotools 2.0 under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def random_masks(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Probabilities that change from cell to cell, with much on both sides of 0.5, up to the edge."""
    return torch.rand(count, side, side, generator=generator)


def assert_pasted(segmentations: list, probabilities: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> None:
    expected = paste_masks_in_image(probabilities[:, None], boxes, size)[:, 0].numpy()
    found = np.stack([rle.decode(mask) for mask in segmentations])
    assert found.shape == expected.shape
    # PyTorch may fuse a product and a sum, so that what is 0.5 up to float32's rounding of places of some hundred
    # pixels falls to either side: one pixel in 100,000, were all values equally likely.
    decided = np.abs(expected - 0.5) > 1e-5
    assert decided.mean() > 0.999
    np.testing.assert_array_equal(found[decided], (expected > 0.5)[decided])


@pytest.mark.parametrize("side", [28, 14, 1])
def test_pixels_are_torchvisions(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    height, width = size = (112, 168)  # of which boxes, expanded by 1 / 28, end at whole pixels
    edges = [
        *([0, 0, width, height], [0, 0, 56, 28], [112, 84, width, height], [28, 0, 140, height], [0, 28, width, 84]),
        *([-60, -30, 20, 40], [150, 90, 300, 200], [-500, -500, 900, 900]),  # beyond the image
        *([30.2, 40.7, 30.9, 41.1], [50, 60, 50, 60], [20.5, 0, 21, height], [0, 33.3, width, 33.4]),  # thin
    ]
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([150.0, 100.0])
    drawn = torch.cat([corners, corners + torch.rand(40, 2, generator=generator) * 60], 1)
    boxes = torch.cat([torch.tensor(edges, dtype=torch.float32), drawn])
    probabilities = random_masks(len(boxes), side, generator)
    segmentations = encode_in_boxes(probabilities, boxes, size, size)
    assert_pasted(segmentations, probabilities, boxes, size)
    for mask in segmentations:  # runs as the library makes them, none of them empty
        assert mask == rle.encode(np.asfortranarray(rle.decode(mask)))


def test_full_and_empty_masks() -> None:
    size = (30, 20)
    boxes = torch.tensor([[-20.0, -20, 40, 50], [2, 3, 15, 20], [-40, 10, -20, 30], [5, 50, 15, 60]])
    probabilities = torch.ones(4, 7, 7)
    probabilities[1] = 0.5  # not above it
    full, *empty = encode_in_boxes(probabilities, boxes, size, size)
    assert rle.decode(full).all()
    assert [rle.decode(mask).tolist() for mask in empty] == [np.zeros(size).tolist()] * 3
    assert encode_in_boxes(probabilities[:0], boxes[:0], size, size) == []


@pytest.mark.parametrize("orig_size", [(270, 200), (45, 67)])
def test_a_file_of_another_size_has_the_same_masks_at_its_own_pixels(orig_size: tuple[int, int]) -> None:
    """Against PyTorch's sampling of the mask at the centers of the file's pixels."""
    generator = torch.Generator().manual_seed(1)
    # With a cell more on each side the boxes end at whole pixels of the input: x1, y1, x2, y2 with the last pixel.
    boxes = torch.tensor([[12.0, 2.0, 68.0, 86.0], [30.0, 31.0, 58.0, 59.0]])
    whole = torch.tensor([[10.0, -1.0, 71.0, 90.0], [29.0, 30.0, 60.0, 61.0]])
    probabilities = random_masks(2, 28, generator)
    found = to_detections(
        {
            "boxes": boxes,
            "labels": torch.tensor([1, 1]),
            "scores": torch.tensor([0.9, 0.8]),
            "mask_probabilities": probabilities,
        },
        image_id=1,
        orig_size=orig_size,
        input_size=(90, 100),
        category_ids=[1],
    )
    y, x = ((torch.arange(n) + 0.5) * side / n for n, side in zip(orig_size, (90, 100), strict=True))
    for mask, box, segmentation in zip(probabilities, whole, found.segmentations, strict=True):
        where = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)
        sides = box[2:] - box[:2]
        padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
        places = 2 * (where - box[:2]) / sides - 1
        values = torch.nn.functional.grid_sample(padded[None, None], places[None], align_corners=False)[0, 0]
        decided = (values - 0.5).abs() > 1e-4  # float32's rounding of other operations
        assert decided.float().mean() > 0.99
        expected = (values > 0.5) & (places.abs() <= 1).all(2)
        np.testing.assert_array_equal(rle.decode(segmentation)[decided], expected.numpy()[decided])
        assert 0 < expected.sum() < expected.numel() / 2
        assert isinstance(segmentation["counts"], str)
