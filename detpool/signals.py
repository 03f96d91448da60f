"""The signals that end a run early."""

import signal

STOP = (signal.SIGINT, signal.SIGTERM)
"""Sent by Ctrl-C, and by `kill` and schedulers."""
ANNOUNCED = (signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") else ()
"""Sent by SLURM to all processes of a job that submitit started, some time before it ends the job; empty on Windows."""
