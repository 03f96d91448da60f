"""Proposals made of the objects: where they lie, and what they refuse."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from detpool.detection.proposals import JitteredProposals

SHAPE = (90, 120)
OBJECTS = torch.tensor([[10.0, 20, 40, 60], [60.0, 5, 118, 88]])


def propose(objects, **settings):
    images = ImageList(torch.zeros(1, 3, *SHAPE), [SHAPE])
    ((proposals,), losses) = JitteredProposals(**settings)(images, {}, [{"boxes": objects}])
    assert losses == {}
    return proposals


def test_boxes_lie_around_objects_and_anywhere():
    torch.manual_seed(0)
    proposals = propose(OBJECTS, boxes_per_object=500, min_iou=0.4, background_per_object=100)
    assert proposals.shape == (1200, 4)
    assert (proposals >= 0).all()
    assert (proposals <= torch.tensor([120.0, 90, 120, 90])).all()
    iou = box_iou(proposals[:1000], OBJECTS).amax(1)
    assert iou.min() >= 0.4
    # Evenly spread over six tenths of IoU: 167 boxes each, standard deviation 12.
    counts = torch.histc(iou, 6, 0.4, 1.0)
    assert (counts - 1000 / 6).abs().max() < 60
    background = proposals[1000:]
    sizes = (background[:, 2:] - background[:, :2]).round().unique(dim=0)  # differences round
    torch.testing.assert_close(sizes, torch.tensor([[30.0, 40], [58.0, 83]]))


def test_repeats_with_the_seed():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(propose(OBJECTS))
    assert torch.equal(*draws)


def test_no_noise_gives_the_objects_and_an_iou_boxes_of_that_iou():
    only = {"boxes_per_object": 3, "background_per_object": 0}
    assert torch.equal(propose(OBJECTS, noise=0.0, **only), OBJECTS.repeat(3, 1))
    inside = torch.tensor([[40.0, 30, 70, 55], [50.0, 40, 58, 49]])  # so far from the border that nothing is cut
    proposals = propose(inside, iou=0.6, boxes_per_object=200, background_per_object=0)
    found = box_iou(proposals, inside)[torch.arange(400), torch.arange(400) % 2]
    # Coordinates of 100 have steps of 8e-6 pixels; an edge of 8 pixels that is off by one changes IoU by 1e-6.
    torch.testing.assert_close(found, torch.full((400,), 0.6), atol=1e-5, rtol=0)


def test_noise_moves_and_stretches_boxes_by_that_distance_on_the_same_rays():
    def displacement(noise):
        torch.manual_seed(1)
        found = propose(inside, noise=noise, boxes_per_object=500, background_per_object=0)
        centre, size = (found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]
        return torch.cat([(centre - torch.tensor([60.0, 45])) / 16, (size / 16).log()], 1)

    inside = torch.tensor([[52.0, 37, 68, 53]])
    near, far = displacement(0.1), displacement(0.3)
    torch.testing.assert_close(near.norm(dim=1), torch.full((500,), 0.1), atol=1e-5, rtol=0)
    torch.testing.assert_close(far, 3 * near, atol=2e-5, rtol=0)
    # Of a direction drawn evenly each square of a coordinate is 1 / 4 on average, standard deviation 0.0088 of 500.
    torch.testing.assert_close((near / 0.1).square().mean(0), torch.full((4,), 0.25), atol=0.045, rtol=0)


def test_no_object_no_proposal():
    assert propose(OBJECTS[:0]).shape == (0, 4)


def test_refuses_targets_without_objects_and_settings_out_of_range():
    images = ImageList(torch.zeros(1, 3, *SHAPE), [SHAPE])
    for targets in (None, [{}]):
        with pytest.raises(ValueError, match="proposals=jittered: the targets must hold the objects' 'boxes'"):
            JitteredProposals()(images, {}, targets)
    assert propose(OBJECTS[:0], iou=0.5).shape == (0, 4)
    with pytest.raises(ValueError, match="give one, got 0.1 and 0.9"):
        JitteredProposals(noise=0.1, iou=0.9)
    wrong = {"boxes_per_object": 0, "min_iou": 1.0, "background_per_object": -1, "noise": -0.1, "iou": 0.0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            JitteredProposals(**{name: value})
