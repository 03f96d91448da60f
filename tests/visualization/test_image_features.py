"""Feature maps of an image that is moved, with a network whose maps are known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from detpool import ops
from detpool.visualization import gradient_field, measure_continuity
from detpool.visualization.features import ImageFeatures

STRIDE = 4


def predictor() -> Any:
    """Its map is the mean of each cell, in channels of other scales; the last does not vary."""

    class Backbone:
        strides, level_names = [STRIDE, 2 * STRIDE], ["0", "1"]

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            cells = F.avg_pool2d(images, STRIDE)
            constant = torch.ones_like(cells[:, :1])
            return {"0": torch.cat([cells * torch.tensor([1.0, 5, 9]).reshape(1, 3, 1, 1) + 3, constant], dim=1)}

    def transform(images: list[torch.Tensor]) -> tuple[Any, None]:
        return SimpleNamespace(tensors=torch.stack(images)), None

    return SimpleNamespace(model=SimpleNamespace(backbone=Backbone(), transform=transform), device="cpu")


@pytest.fixture
def features() -> ImageFeatures:
    image = torch.randint(0, 256, (3, 80, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageFeatures(predictor(), image, STRIDE, channels=3)


def test_maps_are_of_the_moved_image_in_standard_deviations(features: ImageFeatures) -> None:
    still = features.map((20, 24))
    assert still.shape == (1, 3, 20, 24)
    torch.testing.assert_close(still.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(still.std((0, 2, 3)), torch.ones(3, dtype=torch.float64))
    # Whole cells move the map.
    torch.testing.assert_close(features.map((20, 24), (2.0, 1.0))[..., 1:, 2:], still[..., :-1, :-2])
    # Half a cell to the right: the mean of other pixels.
    pixels = features._image * torch.tensor([1.0, 5, 9]).reshape(3, 1, 1) + 3
    expected = F.avg_pool2d(pixels[None, :, :, 2:-2], STRIDE)  # from where half a cell is missing
    half = features.map((20, 24), (0.5, 0.0))[..., 1:]
    back = half * features._deviation + features._mean
    order = [1, 5, 9]
    chosen = [order.index(int(value)) for value in (9, 5, 1)]
    torch.testing.assert_close(back, expected[:, chosen].double(), atol=1e-5, rtol=1e-5)


def test_moves_are_whole_pixels_within_a_cell(features: ImageFeatures) -> None:
    moves = torch.tensor(features.shifts(64, seed=1)) * STRIDE
    assert moves.shape == (16, 2)
    assert torch.equal(moves, moves.round())
    assert moves.min() >= 0
    assert moves.max() < STRIDE


def test_where_a_box_may_lie(features: ImageFeatures) -> None:
    box = (20.0, 17.0, 60.0, 50.0)
    assert features.frame(box, STRIDE, 4, 7) == (box, (20, 24))
    for outside in ((15.0, 17, 60, 50), (20.0, 17, 69, 50), (20.0, 17, 60, 53)):
        with pytest.raises(ValueError, match=r"the image of 96 x 80 pixels .* must have 16 on the left"):
            features.frame(outside, STRIDE, 4, 7)
    with pytest.raises(ValueError, match="that of a map of the run, 4, 8, got 5"):
        ImageFeatures(predictor(), torch.zeros(3, 8, 8, dtype=torch.uint8), 5, 3)


def test_operators_are_measured_on_them(features: ImageFeatures) -> None:
    """Precise RoI pooling of means of cells moves along better than RoIPool, which jumps."""
    box = (20.0, 17.0, 60.0, 50.0)
    jumping = measure_continuity(ops.roi_pool, box, (3, 3), STRIDE, features=features)
    smooth = measure_continuity(ops.pr_roi_pool, box, (3, 3), STRIDE, features=features)
    assert jumping.discontinuity > 0.1
    assert smooth.discontinuity < 1e-6
    assert 0 < smooth.shift_error < jumping.shift_error
    field = gradient_field(ops.pr_roi_pool, (30.0, 30.0, 50.0, 48.0), (3, 3), STRIDE, features=features, reach=0.5)
    assert field.alignment > 0.5
