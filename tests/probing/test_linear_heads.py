import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from detpool.probing.linear_heads import LinearHeads, RandomProjection, columns_of, make_targets


def test_targets_are_those_of_torchvisions_heads():
    objects = torch.tensor([[10.0, 10.0, 30.0, 40.0], [50.0, 5.0, 90.0, 25.0]])
    boxes = torch.tensor([[12.0, 9.0, 33.0, 38.0], [48.0, 5.0, 88.0, 22.0], [60.0, 60.0, 80.0, 80.0], [10, 10, 20, 20]])
    masks = torch.zeros(2, 100, 100, dtype=torch.uint8)
    masks[0, 10:40, 10:20] = 1  # the left half
    masks[1, 5:25, 50:90] = 1
    target = {"boxes": objects, "labels": torch.tensor([2, 1]), "masks": masks}
    wanted, matches = make_targets(boxes, target, classes=3, mask_size=4)
    columns = columns_of(3, 4)
    assert matches.tolist() == [0, 1, -1, -1]
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode([objects], [boxes[:2]])[0]
    torch.testing.assert_close(wanted[:2, columns["box"]], expected)
    assert (wanted[2:, columns["box"]] == 0).all()
    assert wanted[:, columns["class"]].argmax(1).tolist() == [2, 1, 0, 0]
    assert (wanted[:, columns["class"]].sum(1) == 1).all()
    first = wanted[0, columns["mask"]].view(4, 4)
    # 21 pixels from x = 12 on in bins of 5.25: the object's left half ends at 20.
    assert (first[1:3, 0] == 1).all()
    assert ((first[1:3, 1] > 0) & (first[1:3, 1] < 1)).all()
    assert (first[:, 2:] == 0).all()


def test_a_projection_is_of_channels_alone_and_keeps_distances():
    projection = RandomProjection((64, 3, 3), features=9 * 32)
    pooled = torch.randn(50, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    vectors = projection(pooled).view(50, 32, 3, 3)
    assert projection.features == 9 * 32
    # Each bin by the same matrix, which the channels of one bin tell.
    alone = torch.zeros_like(pooled)
    alone[..., 1, 2] = pooled[..., 0, 0]
    torch.testing.assert_close(
        projection(alone).view(50, 32, 3, 3)[..., 1, 2], vectors[..., 0, 0], rtol=1e-5, atol=1e-5
    )
    before, after = pooled.flatten(1).pow(2).sum(1), vectors.flatten(1).pow(2).sum(1)
    # Of one matrix of 2,048 normal numbers the mean is its squared norm over 64: 1 +- sqrt(2 / 2048).
    assert (after / before).mean() == pytest.approx(1, abs=3 * 0.031)
    few = RandomProjection((8, 3, 3), features=1000)
    assert few.features == 72
    assert torch.equal(few(pooled[:, :8]), pooled[:, :8].flatten(1))
    with pytest.raises(ValueError, match="features: 8 are fewer than the 3 x 3 bins"):
        RandomProjection((64, 3, 3), features=8)


def test_heads_find_objects_that_the_map_shows():
    """A map of the objects' own offsets: boxes come out as they should, and detections are the objects."""
    generator = np.random.default_rng(0)
    objects = torch.tensor([[20.0, 20.0, 50.0, 44.0]])

    def pooler(features, boxes, shapes):
        target = {"boxes": features["objects"], "labels": torch.tensor([1])}
        wanted = torch.cat([make_targets(box, target, classes=2)[0] for box in boxes])
        return wanted[:, :, None, None].expand(-1, -1, 2, 2)

    heads = LinearHeads(pooler, (7, 2, 2), classes=2, features=28)
    features, shapes = {"objects": objects}, [(100, 100)]
    boxes = [objects + torch.tensor(generator.uniform(-12, 12, (200, 4)), dtype=torch.float32)]
    x = heads.pool(features, boxes, shapes)
    wanted, matches = make_targets(boxes[0], {"boxes": objects, "labels": torch.tensor([1])}, classes=2)
    assert 20 < (matches >= 0).sum() < 190
    heads.add(x, wanted, matches, torch.arange(200) % 4 == 3)
    heads.fit()
    assert heads.penalties == {"box": 1e-4, "class": 1e-4}
    (found,) = heads.detect(features, heads.predict(x), boxes, shapes, most=10)
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.98
    assert box_iou(found["boxes"][:1], objects) > 0.98


def test_without_objects_nothing_can_be_fitted():
    heads = LinearHeads(torch.nn.Identity(), (1, 2, 2), classes=1, features=4)
    heads.add(torch.randn(5, 4), torch.zeros(5, 6), torch.full((5,), -1), torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="no box has an object"):
        heads.fit()
