"""The signals that end a run before its time."""

import signal

STOP = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what `kill` and schedulers send."""
ANNOUNCED = (signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") else ()
"""What SLURM sends to all processes of a job that submitit started, some time before it ends it; none on Windows."""
