"""Feature maps of a pattern that is known everywhere, so that it can be moved by any part of a pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WAVELENGTHS = (4.0, 16.0)
"""Cells: shortest and longest. A map holds waves of two cells at best; bilinear interpolation needs longer ones."""


class Waves:
    """A sum of plane waves for each channel: directions and phases random, mean 0, variance 1.

    Args:
        channels: of the maps.
        waves: how many each channel adds up.
        seed: of directions, wavelengths (uniform in frequency over `WAVELENGTHS`) and phases.
    """

    def __init__(self, channels: int, waves: int = 16, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        angle, length, phase = torch.rand(3, channels, waves, generator=generator, dtype=torch.float64)
        low, high = 1 / WAVELENGTHS[1], 1 / WAVELENGTHS[0]
        frequency = 2 * math.pi * (low + (high - low) * length)
        self._x, self._y = frequency * (2 * math.pi * angle).cos(), frequency * (2 * math.pi * angle).sin()
        self._phase = 2 * math.pi * phase

    def map(self, size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """The pattern moved by `shift`, at the centres of cells.

        Args:
            size: (height, width) of the map.
            shift: right and down, in cells.

        Returns:
            float64 (1, channels, height, width).
        """
        y = torch.arange(size[0], dtype=torch.float64)[:, None] - shift[1]
        x = torch.arange(size[1], dtype=torch.float64) - shift[0]
        value = torch.zeros(len(self._x), *size, dtype=torch.float64)
        for wave in range(self._x.shape[1]):
            across, down, phase = (t[:, wave, None, None] for t in (self._x, self._y, self._phase))
            value += (across * x + down * y + phase).cos()
        return (value * math.sqrt(2 / self._x.shape[1]))[None]
