"""The examples of docs/operators.md do what the page says."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from ops_cases import random_boxes

from detpool import ops
from detpool.ops import sampling

PAGE = (Path(__file__).parents[2] / "docs/operators.md").read_text()


@pytest.fixture
def page() -> Iterator[dict]:
    """The names that the page's code defines, its registrations undone afterwards."""
    registers = (sampling.SAMPLING, sys.modules["detpool.ops.pool"].REDUCTIONS)  # `ops.pool` is the function
    before = [dict(register) for register in registers]
    names: dict = {}
    torch.manual_seed(0)
    for block in re.findall(r"```python(?! gaussian_rule)[^\n]*\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    yield names
    for register, content in zip(registers, before, strict=True):
        register.clear()
        register.update(content)


def test_the_gaussian_rule(page: dict) -> None:
    """Oracle: the weighted mean of the whole map, bin by bin."""
    features = torch.randn(2, 3, 9, 11)
    boxes = random_boxes(20, (72, 88), 2, seed=0)
    got = ops.pool(features, boxes, (2, 3), 1 / 8, sampling="gaussian")
    for box, bins in zip(boxes, got, strict=True):
        x1, y1, x2, y2 = (box[1:] / 8 - 0.5).tolist()
        for i in range(2):
            y = gaussian_shares(9, y1 + (i + 0.5) * (y2 - y1) / 2, 0.5 * max((y2 - y1) / 2, 1))
            for j in range(3):
                x = gaussian_shares(11, x1 + (j + 0.5) * (x2 - x1) / 3, 0.5 * max((x2 - x1) / 3, 1))
                expected = (features[int(box[0])] * y[:, None] * x).sum((1, 2))
                torch.testing.assert_close(bins[:, i, j], expected, atol=1e-5, rtol=1e-4)


def gaussian_shares(cells: int, centre: float, sigma: float) -> torch.Tensor:
    distribution = NormalDist(centre, sigma)
    return torch.tensor([distribution.cdf(cell + 0.5) - distribution.cdf(cell - 0.5) for cell in range(cells)])


def test_the_gaussian_rule_has_gradients_and_every_backend(page: dict) -> None:
    features = torch.randn(1, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    coords = torch.tensor([[5.3, 4.1, 37.7, 29.2]], dtype=torch.float64, requires_grad=True)
    for backend in ("cpu", "reference"):
        for channels in ("shared", "position_sensitive"):

            def function(features, coords, backend=backend, channels=channels):
                return ops.pool(features, [coords], 2, 1 / 8, sampling="gaussian", channels=channels, backend=backend)

            assert torch.autograd.gradcheck(function, (features, coords), fast_mode=True)


def test_the_gaussian_rule_says_what_it_cannot_do(page: dict) -> None:
    for reduction, message in (("max", "needs the single values"), ("sum", "counts its samples")):
        with pytest.raises(ValueError, match=message):
            ops.pool(torch.randn(1, 1, 6, 6), torch.zeros(1, 5), 2, sampling="gaussian", reduction=reduction)


def test_the_deviation(page: dict) -> None:
    features = torch.randn(1, 3, 8, 8)
    got = ops.pool(
        features, torch.tensor([[0.0, 1, 2, 5, 6]]), 1, bins="rounded", sampling="cells", reduction="deviation"
    )
    expected = features[0, :, 2:7, 1:6].flatten(1).std(dim=1, correction=0)
    torch.testing.assert_close(got.flatten(), expected, atol=1e-4, rtol=1e-4)


def test_the_page_names_every_operator() -> None:
    operators = [name for name in ops.__all__ if name.islower() and name not in ("pool", "reductions")]
    assert [name for name in operators if f"`{name}`" not in PAGE and f"{name}(" not in PAGE] == []
