"""How many operations a call queues on a GPU, counted under the interpreter: each costs some microseconds there."""

import functools
import os

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from detpool import ops
from detpool.ops.backends.triton import launch, primitives
from detpool.ops.layout import memory_format
from detpool.ops.spec import Spec
from detpool.poolers import RoIPooler

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime.interpreter import GridExecutor

# Operations that start nothing on a device: they allocate, or make views.
NOTHING = {
    *("empty", "empty_like", "empty_strided", "new_empty", "alias", "as_strided", "detach", "expand", "permute"),
    *("_reshape_alias", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
}
KNOWN = set(torch._C._dispatch_get_all_op_names())
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select"}


class Counter:
    """Counts kernels and PyTorch's own operations while it is entered; those of operations that are only names for
    others (CompositeImplicitAutograd) are counted in their place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernels, self.operations = 0, list[str]()
        launch = GridExecutor.__call__

        def count_and_launch(executor, *args, **kwargs):
            self.kernels += 1
            with record_function("kernel"):
                return launch(executor, *args, **kwargs)

        monkeypatch.setattr(GridExecutor, "__call__", count_and_launch)
        # a GPU's values are not inspected
        monkeypatch.setattr(primitives, "checks_values", lambda device: False)

    def __call__(self, function):
        self.kernels, self.operations = 0, []
        with profile(activities=[ProfilerActivity.CPU]) as record:
            result = function()
        for event in record.events():
            counted, parent = counts(event.name), event.cpu_parent
            while counted and parent is not None:
                # what runs inside another operation, or inside a kernel that the interpreter runs, is part of it
                counted, parent = parent.name != "kernel" and not counts(parent.name), parent.cpu_parent
            if counted:
                self.operations.append(event.name.removeprefix("aten::"))
        return result

    @property
    def total(self) -> int:
        return self.kernels + len(self.operations)


def counts(name: str) -> bool:
    if not name.startswith("aten::") or name.removeprefix("aten::") in NOTHING:
        return False
    packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
    overloads = KNOWN.intersection(getattr(packet, overload).name() for overload in packet.overloads())
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(n, "CompositeImplicitAutograd") for n in overloads)


def make_inputs(channels: int) -> tuple[Tensor, Tensor]:
    features = torch.randn(2, channels, 6, 7, generator=torch.Generator().manual_seed(0))
    return features, torch.tensor([[0.0, 3.3, 4.1, 17.7, 15.2], [1.0, 2.3, 1.1, 20.7, 18.2]])


OPERATORS = {
    "roi_align": (1, functools.partial(ops.roi_align, sampling_ratio=2)),
    "pr_roi_pool": (1, ops.pr_roi_pool),
    "ps_roi_align": (4, functools.partial(ops.ps_roi_align, sampling_ratio=2)),
    "roi_pool": (1, ops.roi_pool),
    "ps_roi_pool": (4, ops.ps_roi_pool),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, operator = OPERATORS[name]
    features, boxes = make_inputs(3 * groups)
    count = Counter(monkeypatch)
    for needed, most in (([features], 4), ([features, boxes], 8)):
        for tensor in (features, boxes):
            tensor.requires_grad_(any(tensor is t for t in needed))
        output = count(lambda: operator(features, boxes, 2, 0.25, backend="triton"))
        assert count.kernels >= 1
        assert count.total <= 4, count.operations
        assert not WAITS & set(count.operations)
        count(functools.partial(torch.autograd.grad, output, needed, torch.ones_like(output), allow_unused=True))
        assert count.kernels >= 1
        assert count.total <= most, count.operations
        assert not WAITS & set(count.operations)


@pytest.mark.parametrize(
    ("name", "last"), [("roi_align", False), ("ps_roi_align", False), ("ps_roi_align", True), ("ps_roi_pool", True)]
)
def test_a_copied_map_takes_one_operation_more(name: str, last: bool, monkeypatch) -> None:
    """Contiguous ones another for what is pooled, which the kernels hold as they hold maps."""
    groups, operator = OPERATORS[name]
    features = make_inputs(3 * groups)[0].contiguous(memory_format=memory_format(last)).requires_grad_()
    boxes = make_inputs(1)[1]
    count, found = Counter(monkeypatch), {}
    for copied in (False, True):
        monkeypatch.setattr(primitives, "pays_to_copy", lambda *args, copied=copied: copied)
        output = count(lambda: operator(features, boxes, 2, 0.25, backend="triton"))
        forward = count.total
        grad = torch.ones_like(output)
        count(functools.partial(torch.autograd.grad, output, features, grad))
        found[copied] = forward, count.total
    more = 1 if last else 2
    assert found[True] == tuple(number + more for number in found[False])


@pytest.mark.parametrize(
    ("layout", "rois", "groups", "of_features", "of_gradient"),
    [
        ("contiguous", 512, (1, 1), True, True),
        ("channels_last", 512, (1, 1), False, False),
        ("contiguous", 4, (1, 1), False, False),
        ("contiguous", 512, (7, 7), False, True),
        ("channels_last", 512, (7, 7), False, True),
        ("channels_last", 2000, (7, 7), True, True),
        ("channels_last", 128, (7, 7), False, False),
    ],
)
def test_which_maps_are_copied(layout, rois, groups, of_features, of_gradient, monkeypatch) -> None:
    """The maps of a C4 detector and of R-FCN, without memory."""
    launched: list[str] = []
    monkeypatch.setattr(launch, "run_kernel", lambda kernel, *rest: launched.append(kernel.fn.__name__))
    spec = Spec("aligned", "points", (7, 7), (1 / 16,), 2, groups)
    channels, last = 21 if groups == (7, 7) else 256, layout == "channels_last"
    shape = (2, channels * spec.group_count, 50, 76)
    features = torch.empty(shape, device="meta").contiguous(memory_format=memory_format(last))
    boxes = torch.empty(rois, 5, device="meta")
    monkeypatch.setattr(primitives, "checks_values", lambda device: False)
    output = primitives.weighted_sum([features], boxes, None, None, spec)
    assert launched == ["transpose"] * of_features + ["forward"]
    launched.clear()
    grad = primitives.weighted_sum_of_grad(output, boxes, None, None, [shape], [last], spec)[0]
    assert launched.count("transpose") == of_gradient
    assert (grad.shape, grad.stride()) == (features.shape, features.stride())


def test_pooler_of_four_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = {str(n): make_inputs(3)[0][:, :, : 6 - n, : 7 - n].contiguous().requires_grad_() for n in range(4)}
    operator = functools.partial(ops.roi_align, sampling_ratio=2, backend="triton")
    pooler = RoIPooler(list(maps), 2, operator, strides=[4, 8, 16, 32])
    boxes = [make_inputs(1)[1][:, 1:], make_inputs(1)[1][:, 1:]]
    count = Counter(monkeypatch)
    monkeypatch.setattr(ops.levels, "choose", lambda *args: "triton")  # no kernel is chosen for a tensor on a CPU
    output = count(lambda: pooler(maps, boxes, [(24, 28)] * 2))
    assert count.kernels == 5  # levels, and one for each map
    assert count.total <= 8, count.operations
    assert not WAITS & set(count.operations)
    count(functools.partial(torch.autograd.grad, output, list(maps.values()), torch.ones_like(output)))
    assert count.kernels == 4
    assert count.total <= 10, count.operations
    assert not WAITS & set(count.operations)
