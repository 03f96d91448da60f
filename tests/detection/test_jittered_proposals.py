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


def test_no_object_no_proposal():
    assert propose(OBJECTS[:0]).shape == (0, 4)


def test_refuses_targets_without_objects_and_settings_out_of_range():
    images = ImageList(torch.zeros(1, 3, *SHAPE), [SHAPE])
    for targets in (None, [{}]):
        with pytest.raises(ValueError, match="proposals=jittered: the targets must hold the objects' 'boxes'"):
            JitteredProposals()(images, {}, targets)
    for name, value in {"boxes_per_object": 0, "min_iou": 1.0, "background_per_object": -1}.items():
        with pytest.raises(ValueError, match=name):
            JitteredProposals(**{name: value})
