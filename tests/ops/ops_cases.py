"""Inputs that several operator tests share."""

import torch
from torch import Tensor


def random_boxes(count: int, size: tuple[int, int], images: int, seed: int, spread: float = 0.3) -> Tensor:
    """(count, 5) boxes of every kind over an image of ``size`` (height, width) pixels.

    Ordinary, tiny, zero-area, partly and wholly outside, larger than the image, with integral and half-integral
    corners.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    extent = torch.tensor([width, height], dtype=torch.float32)
    centre = (torch.rand(count, 2, generator=generator) * (1 + 2 * spread) - spread) * extent
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 5 - 4.5) * extent
    kind = torch.arange(count) % 10
    sides[kind == 1] *= 0.01
    sides[kind == 2] = 0
    sides[kind == 3, 0] = 0
    sides[kind == 4] *= 2
    corners = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    corners[kind == 5] = corners[kind == 5].round()
    corners[kind == 6] = corners[kind == 6].floor() + 0.5
    corners[kind == 7] = (corners[kind == 7] / 8).round() * 8
    corners[kind == 8] = corners[kind == 8] + 2 * torch.cat([extent, extent])
    corners[kind == 9, :2] = 0
    corners[kind == 9, 2:] = corners[kind == 9, 2:].abs()
    batch = torch.randint(0, images, (count, 1), generator=generator).float()
    return torch.cat([batch, corners], dim=1)


GRADIENT_BOXES = {
    "ordinary": [0.0, 3.3, 4.1, 37.7, 29.2],
    "tiny": [0.0, 13.31, 9.17, 13.52, 9.44],
    "zero-area": [0.0, 13.31, 9.17, 13.31, 20.3],
    "outside": [0.0, -90.3, -70.7, -40.2, -30.1],
    "partly outside": [0.0, -19.4, -7.9, 61.3, 20.6],
    "touching the edges": [0.0, 0.33, 0.21, 39.87, 31.79],
}
"""For numerical differentiation on 8 x 10 features at stride 4: no edge or sampling point lies where an operator has a
kink."""


def check_gradients(function, features: Tensor, box: list[float], *, second_order: bool = True) -> None:
    """Compare first and second derivatives of ``function(features, coords)`` with numerical ones, in float64.

    A box without area is varied in the features only: one side of its derivative is outside what operators accept.
    """
    features = features.double().requires_grad_()
    has_area = box[1] < box[3] and box[2] < box[4]
    coords = torch.tensor([box[1:]], dtype=torch.float64, requires_grad=has_area)
    fixed_features, fixed_coords = features.detach(), coords.detach()
    if has_area:
        assert torch.autograd.gradcheck(lambda c: function(fixed_features, c), coords, eps=1e-7, atol=1e-6)
        inputs, both = [features, coords], function
    else:
        inputs, both = [features], lambda f: function(f, fixed_coords)
    # fast mode: along random directions, since every feature on its own takes thousands of calls
    assert torch.autograd.gradcheck(both, inputs, eps=1e-7, atol=1e-5, fast_mode=True)
    if second_order:
        assert torch.autograd.gradgradcheck(both, inputs, eps=1e-7, atol=1e-5, fast_mode=True)
