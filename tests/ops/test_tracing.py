"""The operators as PyTorch sees them: registration, torch.compile and torch.export."""

import pytest
import torch
from ops_cases import random_boxes

from detpool import ops
from detpool.ops import axes

OPERATORS = {
    "roi_pool": lambda f, b: ops.roi_pool(f, b, 3, 0.25),
    "roi_align": lambda f, b: ops.roi_align(f, b, 3, 0.25, 2, True),
    "roi_align adaptive": lambda f, b: ops.roi_align(f, b, 3, 0.25, 0),
    "roi_align max": lambda f, b: ops.roi_align(f, b, 3, 0.25, 0, reduction="max"),
    "ps_roi_pool": lambda f, b: ops.ps_roi_pool(f, b, 3, 0.25),
    "pr_roi_pool": lambda f, b: ops.pr_roi_pool(f, b, 3, 0.25),
}


def arguments(groups: int, requires_grad: bool) -> tuple:
    torch.manual_seed(0)
    features = torch.randn(2, 2 * groups * groups, 6, 7, requires_grad=requires_grad)
    bins = axes.continuous_bins(torch.tensor([0.7, -1.0, 3.2]), torch.tensor([3.3, 9.0, 0.0]), 2)
    y, x = axes.point_taps(bins, 6, 2), axes.point_taps(bins, 7, 2).transposed()
    batch = torch.tensor([1, 0, 1])
    wy, wx = (t.detach().requires_grad_(requires_grad) for t in (y.weight, x.weight))
    return features, batch, y.index, wy, x.index.contiguous(), wx.contiguous().detach().requires_grad_(requires_grad)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_opcheck_of_the_separable_sum(groups: int, channels_last: bool) -> None:
    features, *taps = arguments(groups, True)
    if channels_last:
        features = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.detpool.separable_sum, (features, *taps, groups, groups, ""))
    grad = torch.randn(3, 2, 2, 2, requires_grad=True)
    layout = (list(features.shape), groups, groups, channels_last, "")
    torch.library.opcheck(torch.ops.detpool.separable_transpose, (grad, *taps, *layout))
    torch.library.opcheck(torch.ops.detpool.separable_weight_grads, (grad, features, *taps, groups, groups, ""))


@pytest.mark.parametrize("groups", [1, 2])
def test_opcheck_of_the_window_maximum(groups: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 2 * groups * groups, 6, 7, requires_grad=True)
    batch = torch.tensor([1, 0, 1])
    windows = torch.tensor([[[0, 3], [2, 6]], [[1, 1], [1, 2]], [[0, 6], [5, 6]]], dtype=torch.int32)
    torch.library.opcheck(torch.ops.detpool.window_max, (features, batch, windows, windows, groups, groups, ""))
    argmax = torch.ops.detpool.window_max(features, batch, windows, windows, groups, groups, "")[1]
    grad = torch.randn(argmax.shape, requires_grad=True)
    layout = (list(features.shape), groups, groups, False, "")
    torch.library.opcheck(torch.ops.detpool.window_scatter, (grad, argmax, batch, *layout))
    torch.library.opcheck(torch.ops.detpool.window_gather, (features, argmax, batch, groups, groups, ""))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_compiles_without_a_graph_break(operator) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    features = torch.randn(2, 9, 8, 10, requires_grad=True)
    boxes = random_boxes(20, (32, 40), 2, seed=0).requires_grad_()
    # aot_eager traces forward and backward as the default backend does and skips the C++ compiler
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    got, expected = compiled(features, boxes), operator(features, boxes)
    torch.testing.assert_close(got, expected)
    inputs = (features, boxes)
    weight = torch.randn_like(got)
    grads_got = torch.autograd.grad(got, inputs, weight, allow_unused=True)
    grads_expected = torch.autograd.grad(expected, inputs, weight, allow_unused=True)
    for a, b in zip(grads_got, grads_expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roi_pool", "roi_align adaptive", "pr_roi_pool"])
def test_exports(name: str) -> None:
    operator = OPERATORS[name]

    class Module(torch.nn.Module):
        def forward(self, features, boxes):
            return operator(features, boxes)

    torch.manual_seed(0)
    features, boxes = torch.randn(2, 9, 8, 10), random_boxes(20, (32, 40), 2, seed=0)
    rois = torch.export.Dim("rois", min=2)
    program = torch.export.export(Module(), (features, boxes), dynamic_shapes=({}, {0: rois}))
    more = random_boxes(33, (32, 40), 2, seed=1)
    torch.testing.assert_close(program.module()(features, more), operator(features, more))


def test_a_compiled_call_stays_inside_its_tensors() -> None:
    """A traced graph cannot look at values: boxes are not refused, and nothing foreign is read."""
    torch._dynamo.reset()
    features = torch.ones(1, 9, 8, 10)
    for name in ("roi_pool", "roi_align", "roi_align adaptive", "pr_roi_pool"):
        compiled = torch.compile(OPERATORS[name], fullgraph=True, backend="aot_eager")
        for wrong in (torch.nan, torch.inf, -torch.inf, 1e30):
            assert compiled(features, torch.tensor([[0.0, 1, 1, 5, 5], [0.0, 1, wrong, wrong, 5]])).shape[0] == 2
        for image in (-1.0, 1.0, 1e9):
            with pytest.raises(IndexError, match="an index must be from 0 to 0"):
                compiled(features, torch.tensor([[0.0, 1, 1, 5, 5], [image, 1, 1, 5, 5]]))
