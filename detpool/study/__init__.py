"""Sweeps before and during their runs: planning, names of run directories, stopping."""

from detpool.extras import require

require()
