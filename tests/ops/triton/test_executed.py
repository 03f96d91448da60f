"""What the gradients' kernels execute, counted by the interpreter in instructions of warps.

The interpreter computes what the compiler would compute once as often as the source says, in all forms alike.
"""

import dataclasses
import math
import os

import numpy as np
import pytest
import torch

from detpool.ops.backends.triton import launch, primitives
from detpool.ops.spec import Spec

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime.interpreter import InterpreterBuilder

CHANNELS = 128
SPEC = Spec("aligned", "points", (7, 7), (1 / 16,), 2)
HEIGHT, WIDTH = 16, 20
SECTOR = 32
"""Bytes that memory moves at least."""
# the quantiles of the boxes of the workload c4: of 9 x 10 cells in the median
ROIS = torch.tensor([[0.0, 40.0, 30.0, 170.0, 160.0], [0.0, 100.0, 60.0, 150.0, 110.0], [0.0, 10.0, 5.0, 280.0, 240.0]])


class Counter:
    """Counts operations of blocks in groups of 32 numbers, and the numbers and sectors that atomic additions add to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.instructions, self.additions, self.sectors = 0, 0, 0
        for name in dir(InterpreterBuilder):
            # what only gives a block another shape, or names a type, is nothing at run time
            shapes = ("splat", "expand", "broadcast", "bitcast", "reshape", "make_range", "get_")
            if name.startswith("create_") and not any(word in name for word in shapes):
                monkeypatch.setattr(InterpreterBuilder, name, self._counted(getattr(InterpreterBuilder, name)))

    def _counted(self, operation):
        def call(builder, *args, **kwargs):
            result = operation(builder, *args, **kwargs)
            blocks = [value.data for value in (result, *args) if isinstance(getattr(value, "data", None), np.ndarray)]
            self.instructions += math.ceil(max((block.size for block in blocks), default=1) / 32)
            if operation.__name__ == "create_atomic_rmw":
                self.additions += int(args[3].data.sum())
                self.sectors += len(np.unique(args[1].data[args[3].data] // SECTOR))
            return result

        return call

    def __call__(self, deterministic: bool, spec: Spec = SPEC, channels: int = CHANNELS) -> torch.Tensor:
        self.instructions, self.additions, self.sectors = 0, 0, 0
        grad = torch.randn(len(ROIS), channels, *spec.output_size, generator=torch.Generator().manual_seed(0))
        torch.use_deterministic_algorithms(deterministic)
        try:
            shape = (1, channels * spec.group_count, HEIGHT, WIDTH)
            return primitives.weighted_sum_of_grad(
                grad.contiguous(memory_format=torch.channels_last), ROIS, None, None, [shape], [True], spec
            )[0]
        finally:
            torch.use_deterministic_algorithms(False)


def test_gradients_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Counter(monkeypatch)
    monkeypatch.setattr(launch, "lanes", lambda: 32)
    atomic = count(deterministic=False)
    instructions, additions = count.instructions, count.additions / CHANNELS
    # every cell of every RoI is added once, not every tap, of which there are 784 for each RoI
    assert (atomic[0, 0] != 0).sum() <= additions <= sum(_cells(roi) for roi in ROIS) < 784
    gathered = count(deterministic=True)
    assert count.additions == 0
    assert count.instructions <= 3 * instructions
    torch.testing.assert_close(gathered, atomic, rtol=1e-5, atol=1e-5)


def test_gradients_of_position_sensitive_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 21 channels of a bin are 84 bytes, which lie in three sectors or four, in place of 21."""
    spec = dataclasses.replace(SPEC, output_size=(2, 2), groups=(2, 2))
    count, found = Counter(monkeypatch), {}
    monkeypatch.setattr(launch, "lanes", lambda: 32)
    for copied in (False, True):
        monkeypatch.setattr(primitives, "pays_to_copy", lambda *args, copied=copied: copied)
        grad = count(deterministic=False, spec=spec, channels=21)
        taps = count.additions / 21
        assert taps == len(ROIS) * 2 * 2 * 4 * 4  # all of them in the image
        found[copied] = grad, count.sectors / taps
    assert found[False][1] > 10
    assert 3 <= found[True][1] <= 4
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-5, atol=1e-5)


def test_a_copy_moves_whole_sectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between channels_last, groups and columns apart, and channels of a group side by side."""
    moved = []
    for name, mask in (("load", 0), ("store", 1)):
        operation = getattr(InterpreterBuilder, f"create_masked_{name}")

        def call(builder, at, *args, operation=operation, mask=mask):
            moved.append(len(np.unique(at.data[args[mask].data] // SECTOR)))
            return operation(builder, at, *args)

        monkeypatch.setattr(InterpreterBuilder, f"create_masked_{name}", call)
    spec = dataclasses.replace(SPEC, groups=(7, 7))
    for layout in (torch.channels_last, torch.contiguous_format):
        features = torch.arange(2.0 * 21 * 49 * 3 * 40).view(2, 21 * 49, 3, 40).contiguous(memory_format=layout)
        monkeypatch.setattr(primitives, "pays_to_copy", lambda *args: True)
        moved.clear()
        copy = primitives._to_read(features, ROIS, spec)
        assert copy.stride()[1:3] == (1, 21)
        assert torch.equal(copy.flatten(1, 2), features)
        # rows of 32 numbers and of 21 that begin anywhere, where 8 fit a sector
        assert sum(moved) <= 1.6 * 2 * features.numel() / 8


def _cells(roi: torch.Tensor) -> int:
    """Cells of the rows and columns that a RoI's points reach, each a cell beyond the box at most."""
    width, height = ((roi[3] - roi[1]) / 16).item(), ((roi[4] - roi[2]) / 16).item()
    return (math.ceil(width) + 2) * (math.ceil(height) + 2)
