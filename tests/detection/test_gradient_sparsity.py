"""How many cells of the maps that pools read get a gradient in a training step: docs/layers.md has the numbers."""

from collections.abc import Callable

import pytest
import torch
from detector_cases import batches, composed
from torch import Tensor, nn

from detpool import layers
from detpool.training.runs import build_data, build_module

KINDS = (layers.MaxPool2d, layers.AvgPool2d, layers.SoftmaxPool2d, layers.StochasticPool2d, layers.MaxBlurPool2d)
SHARES = {
    # windows at stride 2: of 3 x 3 cells with padding 1, and of 2 x 2
    "average": (1.0, 1.0),
    "softmax": (1.0, 1.0),
    "max": (0.186, 0.25),
    "stochastic": (0.191, 0.217),
    "max_blur": (0.358, 0.476),
}
"""As documented."""


def shares_with_gradient(step: Callable[[], Tensor], pools: list[nn.Module]) -> list[float]:
    """Of the cells of each pool's input, those whose gradient in a step, which returns a loss, is not 0."""
    found: list[float] = []

    def watch(pool: nn.Module, given: tuple[Tensor]) -> Tensor:
        own = given[0].view_as(given[0])  # which others that read the map have no part in
        own.register_hook(lambda gradient: found.append((gradient != 0).double().mean().item()))
        return own

    handles = [pool.register_forward_pre_hook(watch) for pool in pools]
    step().backward()
    for handle in handles:
        handle.remove()
    return found


def measured(name: str, kernel: int, padding: int) -> float:
    """The mean share over the pools of the stem and of the stages, in the first step of a tiny Faster R-CNN."""
    slots = [
        f"{slot}.{key}"
        for slot in ("stem_pool", "downsample")
        for key in (f"kernel_size={kernel}", f"padding={padding}")
    ]
    config = composed("faster_rcnn", None, [f"stem_pool={name}", f"downsample={name}", *slots])
    torch.manual_seed(0)
    data = build_data(config)
    config.class_names = list(data.class_names)
    model = build_module(config).model.train()
    images, targets = next(batches(data.train_dataloader(), given=False))
    pools = [module for module in model.backbone.modules() if isinstance(module, KINDS)]
    found = shares_with_gradient(lambda: sum(model(images, targets).values()), pools)
    assert len(found) == len(pools) == 7
    return sum(found) / len(found)


@pytest.mark.parametrize("name", SHARES)
def test_maxima_pass_gradients_to_a_quarter_of_cells_at_most(name: str) -> None:
    found = measured(name, 3, 1), measured(name, 2, 0)
    # A step of other weights and images moves these by less than that.
    assert found == pytest.approx(SHARES[name], abs=0.02)
    if name == "max":
        assert found[1] == 0.25  # one of four, none shared
    if name in ("max", "stochastic"):
        assert max(found) <= 0.25
