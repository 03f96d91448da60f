"""Stops a sweep with runs in separate processes (launcher=joblib): running ones save themselves, no others start.

Without this, joblib would kill its processes when the program is interrupted.
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
    """The state of a worker process, which does one run after another."""

    running = False
    stopped = False

    @classmethod
    @contextmanager
    def run(cls) -> Iterator[None]:
        """Context of a run: a signal raises KeyboardInterrupt unless training handles it, which then saves itself."""
        for number in STOP:
            signal.signal(number, cls._handle)
        cls.running = True
        try:
            yield
        finally:
            cls.running = False

    @classmethod
    def _handle(cls, number: int, frame: FrameType | None) -> None:
        # Between two runs the signal is only recorded, since the death of one worker would end all of them. The same
        # holds while a run is already stopping: Ctrl-C reaches a worker twice, from the terminal and from the program.
        first, cls.stopped = not cls.stopped, True
        if cls.running and first:
            raise KeyboardInterrupt


@contextmanager
def wait_for_workers() -> Iterator[None]:
    """Context of the program that starts the workers: forwards signals to them, and exits when their runs have ended.

    A second Ctrl-C kills all workers and exits at once.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            os.write(2, b"stopped at once; the same command resumes\n")
            for process in _children():
                os.kill(process, signal.SIGKILL)
            os._exit(128 + number)  # else code that waits for the workers prints long errors
        received.append(number)
        os.write(2, b"\nstopping the runs (Ctrl-C again: at once)\n")
        # SIGTERM: a terminal has already sent Ctrl-C to the workers, for which a second one means to stop at once.
        for process in _children():
            os.kill(process, signal.SIGTERM)

    previous = {number: signal.signal(number, handle) for number in STOP}
    try:
        yield
    except Exception:
        # The signal kills a worker that is still starting; joblib then raises an error and ends the others.
        if not received:
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])


def _children() -> list[int]:
    """Returns the ids of this process's children; none on systems without Linux's /proc."""
    files = Path("/proc/self/task").glob("*/children")
    return [int(number) for file in files for number in file.read_text().split()]
