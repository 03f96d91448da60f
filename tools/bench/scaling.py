"""How time grows with the number of RoIs, of channels and of bins, and with the area of a bin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .workloads import Workload, build

ROIS, FEW, CHANNELS, BINS, BIN_AREA = "RoIs", "RoIs of 64 channels", "channels", "bins", "cells per bin"


class Point(NamedTuple):
    """A workload, named for the quantity that is varied, and that quantity's value."""

    value: float
    workload: Workload


def points(quick: bool = False) -> Iterator[Point]:
    """The map of `c4` with 512 RoIs, 256 channels and 7 x 7 bins, one of them varied at a time.

    RoIs have sides of 32 to 500 px, except where the area of a bin is varied: there all have the same side. Few RoIs
    show what a call costs whatever it pools: from how many on is an implementation faster than another?
    """
    stride, size = 16, (160, 256) if quick else (800, 1216)
    usual: dict[str, Any] = {"channels": 256, "rois": 512, "sides": (32, 500), "image_size": size}
    if quick:
        usual |= {"channels": 8, "rois": 8, "sides": (32, 150)}
    for count in (4, 8, 16) if quick else (1, 2, 4, 8, 32, 128, 512, 1024):
        yield Point(count, build(ROIS, **usual | {"rois": count}))
    for count in (1, 2) if quick else (1, 2, 4, 8, 16, 64):
        yield Point(count, build(FEW, **usual | {"rois": count, "channels": min(64, usual["channels"])}))
    for count in (4, 8, 16) if quick else (16, 64, 256, 1024):
        yield Point(count, build(CHANNELS, **usual | {"channels": count}))
    for edge in (2, 7) if quick else (1, 3, 7, 14):
        yield Point(edge * edge, build(BINS, **usual, output_size=(edge, edge)))
    for cells in (0.5, 1) if quick else (0.25, 0.5, 1, 2, 4, 6):
        width = cells * 7 * stride
        yield Point(cells * cells, build(BIN_AREA, **usual | {"sides": (width, width)}))
