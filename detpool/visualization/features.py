"""Feature maps that can be moved: of a pattern that is known everywhere, and of a trained run for an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # which a benchmark of operators does without
    from detpool.predictor import Predictor

Box = tuple[float, float, float, float]

CHANNELS = 8
"""Of the maps that are looked at."""
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

    def frame(self, box: Box, stride: float, before: int, after: int) -> tuple[Box, tuple[int, int]]:
        """Where on a map a box is looked at: the pattern has no border, so that no box is near one.

        Args:
            box: x1, y1, x2, y2 in pixels.
            stride: pixels per cell.
            before, after: whole cells of the map on its left and upper, and on its right and lower side.

        Returns:
            The box in pixels of the map, moved by whole cells, which changes no rounding; the map's (height, width).
        """
        x1, y1, x2, y2 = (edge - (math.floor(box[i % 2] / stride) - before) * stride for i, edge in enumerate(box))
        return (x1, y1, x2, y2), (math.ceil(y2 / stride) + after, math.ceil(x2 / stride) + after)

    def shifts(self, count: int, seed: int) -> list[list[float]]:
        """Moves (right, down) within a cell, quasi-random, in cells: (count, 2)."""
        engine = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed)
        return engine.draw(count).to(torch.float64).tolist()

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


class ImageFeatures:
    """A feature map of a trained run for an image, at the image's own size; channels of mean 0 and variance 1.

    Args:
        predictor: the run.
        image: uint8 (3, H, W), RGB.
        stride: of the map, pixels per cell.
        channels: so many of the map's, those that vary most.

    Raises:
        ValueError: If the run has no map of that stride.
    """

    _MOST_SHIFTS = 16  # each takes the network

    def __init__(self, predictor: Predictor, image: Tensor, stride: float, channels: int) -> None:
        backbone = predictor.model.backbone
        names = dict(zip(map(float, backbone.strides), backbone.level_names, strict=True))
        if stride not in names:
            known = ", ".join(f"{each:g}" for each in names)
            raise ValueError(f"stride must be that of a map of the run, {known}, got {stride:g}")
        self._model, self._device, self._name = predictor.model, predictor.device, names[stride]
        self._image, self._stride = image.float() / 255, stride
        values = self._features((0, 0))
        self._chosen = values.var((0, 2, 3)).topk(min(channels, values.shape[1])).indices
        values = values[:, self._chosen]
        self._mean, self._deviation = values.mean((0, 2, 3), keepdim=True), values.std((0, 2, 3), keepdim=True)

    def frame(self, box: Box, stride: float, before: int, after: int) -> tuple[Box, tuple[int, int]]:
        """The box as it is, and the size of the map.

        Raises:
            ValueError: If the box is not that far from the border of the image: what lies beyond is not known.
        """
        height, width = self._image.shape[1:]
        room = (box[0] - before * stride, box[1] - before * stride, box[2] + after * stride, box[3] + after * stride)
        if room[0] < 0 or room[1] < 0 or room[2] > width or room[3] > height:
            raise ValueError(
                f"the image of {width} x {height} pixels (width x height) must have {before * stride:g} on the left and"
                f" upper and {after * stride:g} on the right and lower side of the box, got the box {box}"
            )
        return box, (math.ceil(height / stride), math.ceil(width / stride))

    def shifts(self, count: int, seed: int) -> list[list[float]]:
        """Moves (right, down) within a cell by whole pixels, drawn, in cells; fewer than asked for."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(int(self._stride), (min(count, self._MOST_SHIFTS), 2), generator=generator)
        return (drawn / self._stride).tolist()

    def map(self, size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """The map of the image moved by `shift`, in cells that are whole pixels; see `Waves.map`.

        At the left and upper border the outermost pixels are repeated.
        """
        right, down = (round(part * self._stride) for part in shift)
        return (self._features((right, down))[:, self._chosen] - self._mean) / self._deviation

    def _features(self, shift: tuple[int, int]) -> Tensor:
        height, width = self._image.shape[1:]
        moved = F.pad(self._image[None], (shift[0], 0, shift[1], 0), mode="replicate")[0, :, :height, :width]
        with torch.inference_mode():
            batch, _ = self._model.transform([moved.to(self._device)])
            features = self._model.backbone(batch.tensors)[self._name]
        return features.double().cpu().clone()
