"""Stopping a sweep whose runs are processes of their own (launcher=joblib): every run saves itself, and none begins.

Joblib would kill its processes when the program is interrupted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from detpool.signals import STOP


class Worker:
    """The state of a process that runs one run after another."""

    running = False
    stopped = False

    @classmethod
    @contextmanager
    def run(cls) -> Iterator[None]:
        """A run in this process: a signal raises KeyboardInterrupt, unless training, which saves itself, handles it."""
        for number in STOP:
            signal.signal(number, cls._handle)
        cls.running = True
        try:
            yield
        finally:
            cls.running = False

    @classmethod
    def _handle(cls, number: int, frame: FrameType | None) -> None:
        # Between two runs it is only noted: the death of a worker would be that of all. So it is while a run comes to
        # its end at an earlier signal: Ctrl-C reaches a worker twice, from the terminal and from the program.
        first, cls.stopped = not cls.stopped, True
        if cls.running and first:
            raise KeyboardInterrupt


@contextmanager
def wait_for_workers() -> Iterator[None]:
    """For the program that started the workers: hands a signal on to them, and exits when they have ended their runs.

    A second Ctrl-C ends everything at once.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            os.write(2, b"stopped at once; the same command resumes\n")
            for process in _children():
                os.kill(process, signal.SIGKILL)
            os._exit(128 + number)  # whatever waits for the workers would say at length that they are gone
        received.append(number)
        os.write(2, b"\nstopping the runs (Ctrl-C again: at once)\n")
        # A terminal has sent Ctrl-C to the workers as well, to whom a second one would mean to stop at once.
        for process in _children():
            os.kill(process, signal.SIGTERM)

    previous = {number: signal.signal(number, handle) for number in STOP}
    try:
        yield
    except Exception:
        # A worker that was still starting is ended by the signal; joblib says so at length and ends the others.
        if not received:
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])


def _children() -> list[int]:
    """Processes started by this one; none where the system cannot tell (without Linux's /proc)."""
    files = Path("/proc/self/task").glob("*/children")
    return [int(number) for file in files for number in file.read_text().split()]
