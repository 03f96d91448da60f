"""Matching and mask targets against torchvision's, which hold all objects of an image at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from detpool.detection import ProposalNetwork
from detpool.detection.assignment import mask_targets, match_boxes


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operator returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.nbytes)
        return result


def boxes_on_a_grid(count, side, generator):
    """Whole numbers of pixels, so that equal IoUs, and IoUs that are a threshold, are many."""
    corner = torch.randint(0, side, (count, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(3, 12, (count, 2), generator=generator)], 1).float()


@pytest.mark.parametrize("low_quality", [True, False])
def test_matches_are_those_of_the_whole_matrix(low_quality):
    generator = torch.Generator().manual_seed(0)
    boxes = boxes_on_a_grid(5000, 300, generator)
    objects = boxes[:1200] + torch.randint(-2, 3, (1200, 2), generator=generator).repeat(1, 2)
    objects[1100:] = objects[:100]  # of another part than their equals: there are three
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=low_quality)
    ious = box_iou(objects, boxes)
    expected = matcher(ious)
    with Largest() as largest:
        found = match_boxes(matcher, objects, boxes)
    assert torch.equal(found, expected)
    assert all((expected == kind).sum() > 100 for kind in (-2, -1))
    assert largest.size < ious.nbytes


def test_an_object_that_no_box_meets_takes_all_as_the_matcher_has_it():
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    objects = torch.tensor([[0.0, 0, 10, 9], [50, 50, 60, 60]])
    assert match_boxes(matcher, objects, boxes).tolist() == matcher(box_iou(objects, boxes)).tolist() == [0, 0]


def test_labels_of_anchors_are_torchvisions():
    generator = torch.Generator().manual_seed(1)
    network = ProposalNetwork(["0"], 4, [[16]])
    anchors = [boxes_on_a_grid(500, 60, generator) for _ in range(3)]
    targets = [{"boxes": boxes_on_a_grid(n, 60, generator)} for n in (7, 0, 1)]
    ours = network.assign_targets_to_anchors(anchors, targets)
    theirs = RegionProposalNetwork.assign_targets_to_anchors(network, anchors, targets)
    assert {-1, 0, 1} == set(torch.cat(theirs[0]).tolist())
    for mine, reference in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, reference, strict=True))


def test_mask_targets_are_torchvisions():
    generator = torch.Generator().manual_seed(2)
    height, width = 400, 500
    masks = (torch.rand(40, height, width, generator=generator) < 0.5).to(torch.uint8)
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([corner, corner + torch.rand(60, 2, generator=generator) * 160], 1)
    boxes[:50] = torch.minimum(boxes[:50], torch.tensor([width, height] * 2))
    boxes[50:55, :2] -= 100  # beyond the image, as some of the ten are on other sides
    special = [
        *([0, 0, width, height], [5, 5, 5.2, 5.1], [width - 0.5, height - 0.5, width, height]),
        *([3, 4, 9, 11], [width + 10, height + 5, width + 20, height + 9]),
    ]
    boxes = torch.cat([boxes, torch.tensor(special)])
    matches = torch.randint(40, (65,), generator=generator)
    expected = project_masks_on_boxes(masks, boxes, matches, 28)
    with Largest() as largest:
        found = mask_targets(masks, boxes, matches, 28)
    # Coordinates of points, and so their weights, are rounded by 3e-5 where they reach 500, and by less within a box.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert largest.size < masks.numel() * 4
    assert mask_targets(masks, boxes[:0], matches[:0], 28).shape == (0, 28, 28)
