"""Seconds and memory of training steps, with a clock and steps that are known."""

import mmap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detpool.training import callbacks
from detpool.training.callbacks import StepCost

MODULE = SimpleNamespace(device=torch.device("cpu"))
STATUS = Path("/proc/self/status")


def test_median_of_steps_without_what_lies_between_them(monkeypatch):
    now = 0.0
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now)
    cost = StepCost()
    assert cost.step_seconds is None
    for step in (30.0, 1.0, 3.0, 2.0, 2.5):  # the first compiles kernels
        now += 100  # loading, validation
        cost.on_train_batch_start(None, MODULE, None, 0)
        now += step
        cost.on_train_batch_end(None, MODULE, None, None, 0)
    assert cost.step_seconds == 2.5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells how much memory was in use")
def test_memory_is_that_of_the_largest_step_of_this_run():
    def resident():
        (kilobytes,) = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:")]
        return 1024 * int(kilobytes)

    def use(mebibytes):
        # The system's own pages: malloc may answer from memory that it kept of an earlier test.
        with mmap.mmap(-1, mebibytes << 20) as pages:
            pages[:: mmap.PAGESIZE] = bytes(len(pages) // mmap.PAGESIZE)

    def run(*mebibytes):
        cost, peaks = StepCost(), []
        for size in mebibytes:
            use(256)  # between the steps
            before = resident()  # at each step: the system may take back memory that nobody uses
            cost.on_train_batch_start(None, MODULE, None, 0)
            use(size)
            cost.on_train_batch_end(None, MODULE, None, None, 0)
            peaks.append(before + (size << 20))
        return cost.peak_memory_bytes, max(peaks)

    for sizes in ((1, 192, 1), (1, 64, 1)):  # the second run's peak is its own
        measured, expected = run(*sizes)
        # Nothing else happens in a step; allocators round by a few MiB at most.
        assert measured == pytest.approx(expected, abs=8 << 20)


def test_memory_is_unknown_where_the_peak_cannot_be_reset(monkeypatch):
    def refuse(self, text):
        raise PermissionError(self)

    monkeypatch.setattr(callbacks.Path, "write_text", refuse)
    cost = StepCost()
    cost.on_train_batch_start(None, MODULE, None, 0)
    cost.on_train_batch_end(None, MODULE, None, None, 0)
    assert cost.peak_memory_bytes is None
    assert cost.step_seconds is not None
