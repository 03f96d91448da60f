"""Comparison of poolings without training: on the maps of a frozen backbone, and with trained weights."""

from detpool.extras import require

require()
