"""What the gradients' kernels execute, counted by the interpreter in instructions of warps.

The interpreter computes what the compiler would compute once as often as the source says, in all forms alike.
"""

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
# the quantiles of the boxes of the workload c4: of 9 x 10 cells in the median
ROIS = torch.tensor([[0.0, 40.0, 30.0, 170.0, 160.0], [0.0, 100.0, 60.0, 150.0, 110.0], [0.0, 10.0, 5.0, 280.0, 240.0]])


class Counter:
    """Counts operations of blocks in groups of 32 numbers, and the numbers that atomic additions add."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.instructions, self.additions = 0, 0
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
            return result

        return call

    def __call__(self, deterministic: bool) -> torch.Tensor:
        self.instructions, self.additions = 0, 0
        grad = torch.randn(len(ROIS), CHANNELS, 7, 7, generator=torch.Generator().manual_seed(0))
        torch.use_deterministic_algorithms(deterministic)
        try:
            shape = (1, CHANNELS, HEIGHT, WIDTH)
            return primitives.weighted_sum_of_grad(
                grad.contiguous(memory_format=torch.channels_last), ROIS, None, None, [shape], [True], SPEC
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


def _cells(roi: torch.Tensor) -> int:
    """Cells of the rows and columns that a RoI's points reach, each a cell beyond the box at most."""
    width, height = ((roi[3] - roi[1]) / 16).item(), ((roi[4] - roi[2]) / 16).item()
    return (math.ceil(width) + 2) * (math.ceil(height) + 2)
