import random

import numpy as np
import pytest
import torch

from detpool.data.sampling import SampleKey
from detpool.data.shapes import ShapesDataset
from detpool.data.transforms import detection_transform


def everything_random(image, target):
    """A user's own transform, which draws from every generator there is."""
    image, target = detection_transform(hflip=0.5, photometric=True)(image, target)
    target["drawn"] = (float(torch.rand(())), float(np.random.rand()), random.random())
    return image, target


@pytest.fixture
def dataset():
    return ShapesDataset("train", 4, size=32, object_size=(0.3, 0.8), transform=everything_random)


def test_a_key_fixes_what_transforms_draw_and_leaves_no_trace(dataset):
    first = dataset[SampleKey(2, 11)]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    again = dataset[SampleKey(2, 11)]
    assert torch.equal(first[0], again[0])
    assert first[1]["drawn"] == again[1]["drawn"]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    other = dataset[SampleKey(2, 12)][1]["drawn"]
    assert all(a != b for a, b in zip(first[1]["drawn"], other, strict=True))


def test_an_index_alone_draws_from_the_global_generators(dataset):
    torch.manual_seed(0)
    first = dataset[2][1]["drawn"]
    second = dataset[2][1]["drawn"]
    assert all(a != b for a, b in zip(first, second, strict=True))
