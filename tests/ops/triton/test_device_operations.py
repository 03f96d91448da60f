"""How many operations a call queues on a GPU, counted under the interpreter: each costs some microseconds there."""

import functools
import os

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from detpool import ops
from detpool.ops.backends.triton import primitives
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
