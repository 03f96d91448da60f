"""Feature maps that can be shifted: of a pattern that is known everywhere, and of an image in a trained run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # a benchmark of operators works without it
    from detpool.predictor import Predictor

Box = tuple[float, float, float, float]

CHANNELS = 8
"""Number of channels of the maps."""
WAVELENGTHS = (4.0, 16.0)
"""Shortest and longest in cells. A map can represent waves of two cells; bilinear interpolation needs longer ones."""


class Waves:
    """A sum of plane waves with random directions and phases for each channel, with mean 0 and variance 1.

    Args:
        channels: number of channels of the maps.
        waves: number of waves per channel.
        seed: seed of directions, wavelengths (uniform in frequency over `WAVELENGTHS`) and phases.
    """

    def __init__(self, channels: int, waves: int = 16, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        angle, length, phase = torch.rand(3, channels, waves, generator=generator, dtype=torch.float64)
        low, high = 1 / WAVELENGTHS[1], 1 / WAVELENGTHS[0]
        frequency = 2 * math.pi * (low + (high - low) * length)
        self._x, self._y = frequency * (2 * math.pi * angle).cos(), frequency * (2 * math.pi * angle).sin()
        self._phase = 2 * math.pi * phase

    def frame(self, box: Box, stride: float, before: int, after: int) -> tuple[Box, tuple[int, int]]:
        """Place a box on a map with a margin. The pattern has no border, so this is possible for any box.

        Args:
            box: x1, y1, x2, y2 in pixels.
            stride: pixels per cell.
            before, after: margin in whole cells to the left of and above, and to the right of and below the box.

        Returns:
            The box in pixels of the map, moved by whole cells, which keeps all rounding the same; and the (height,
            width) of the map in cells.
        """
        x1, y1, x2, y2 = (edge - (math.floor(box[i % 2] / stride) - before) * stride for i, edge in enumerate(box))
        return (x1, y1, x2, y2), (math.ceil(y2 / stride) + after, math.ceil(x2 / stride) + after)

    def shifts(self, count: int, seed: int) -> list[list[float]]:
        """Return `count` quasi-random shifts (right, down) within a cell, in cells."""
        engine = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed)
        return engine.draw(count).to(torch.float64).tolist()

    def map(self, size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Sample the pattern, moved by `shift`, at the centers of cells.

        Args:
            size: (height, width) of the map in cells.
            shift: shift right and down, in cells.

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
    """A feature map of an image in a trained run, scaled to mean 0 and variance 1 for each channel.

    Args:
        predictor: predictor of the run.
        image: uint8 (3, H, W), RGB.
        stride: stride of the map in pixels per cell.
        channels: number of channels to keep: those that vary most.

    Raises:
        ValueError: If the run has no map of that stride.
    """

    _MOST_SHIFTS = 16  # each runs the network

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
        """Return the unchanged box and the (height, width) of the map in cells; see `Waves.frame`.

        Raises:
            ValueError: If the margin around the box reaches beyond the border of the image.
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
        """Return random shifts (right, down) within a cell by whole pixels, in cells: `count`, but at most 16."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(int(self._stride), (min(count, self._MOST_SHIFTS), 2), generator=generator)
        return (drawn / self._stride).tolist()

    def map(self, size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Compute the map of the image moved by `shift`, in cells, which is rounded to whole pixels; see `Waves.map`.

        The outermost pixels are repeated at the left and upper border. `size` has no effect: the map covers the image.
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
