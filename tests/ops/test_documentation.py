"""The examples of docs/operators.md, and of operators in docs/extending.md, do what the pages say."""

import re
from importlib import import_module
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from ops_cases import random_boxes

from detpool import ops

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operators.md").read_text()


@pytest.fixture
def page(own_package: Path) -> dict:
    """The names that the code of both pages defines."""
    names: dict = {}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    for module in ("rules", "reductions"):
        import_module(f"my_package.{module}")
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), flags=re.DOTALL):
        exec(block, names)
    return names


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
    """Of the Gaussian within three standard deviations."""

    def below(edge: float) -> float:
        return NormalDist().cdf(min(max((edge - centre) / sigma, -3), 3))

    whole = NormalDist().cdf(3) - NormalDist().cdf(-3)
    return torch.tensor([(below(cell + 0.5) - below(cell - 0.5)) / whole for cell in range(cells)])


def test_the_gaussian_rule_reads_what_it_weighs_and_no_more(page: dict) -> None:
    """Cells further than three standard deviations may be NaN; none within is left out."""
    features = torch.randn(1, 1, 40, 50, dtype=torch.float64)
    for left, side in ((100.3, 40.1), (-30.0, 60.0), (170.0, 61.7), (20.0, 350.0), (80.0, 3.0), (500.0, 9.0)):
        box = torch.tensor([[0, left, left, left + side, left + side]], dtype=torch.float64)
        centre, sigma = left / 8 - 0.5 + side / 16, 0.5 * max(side / 8, 1)
        y, x = (gaussian_shares(cells, centre, sigma).double() for cells in (40, 50))
        weights = y[:, None] * x
        hidden = features.masked_fill(weights == 0, torch.nan)
        got = ops.pool(hidden, box, 1, 1 / 8, sampling="gaussian")
        torch.testing.assert_close(got[0, 0, 0, 0], (features[0, 0] * weights).sum())


def test_no_rois(page: dict) -> None:
    assert ops.pool(torch.randn(1, 2, 9, 9), torch.zeros(0, 5), 3, sampling="gaussian").shape == (0, 2, 3, 3)


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


def test_the_pages_name_every_operator() -> None:
    operators = [name for name in ops.__all__ if name.islower() and name not in ("pool", "reductions")]
    pages = PAGE + (DOCS / "extending.md").read_text()
    assert [name for name in operators if f"`{name}`" not in pages and f"{name}(" not in pages] == []
