"""Sweeps before and during their runs: planning, names of run directories, launching and stopping."""

from detpool.extras import require

require()
