"""Masks of the objects of an image, stored only within their bounding boxes until pixels are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor
from torch.utils._pytree import register_pytree_node  # where torchvision's transforms look, too
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detpool.masks import Size, crop_rles, to_rles


class Grid(tv_tensors.TVTensor):
    """The origin of an image's rows and columns; `torchvision.transforms.v2` resizes, flips, crops and pads it.

    int64 (2 + H + W,): height and width in pixels, then for each row and each column its index in the image file, -1 if
    it lies outside the file.
    """


@dataclass(eq=False)  # comparing tensors gives no single truth value
class ObjectMasks:
    """The masks (n, H, W) of an image's objects, stored as pixels of the image file and a grid that maps image to file.

    For `torchvision.transforms.v2`, which changes only `grid`, and for data loaders this is a container of tensors.
    """

    pixels: Tensor
    """uint8, 0 or 1: the pixels of each object within its extent, row by row, one object after the other."""
    extents: Tensor
    """int64 (n, 5): x, y, width, height in pixels of the file, and the index in `pixels` where the object begins."""
    grid: Tensor
    """The rows and columns of the image as indices in the file (`Grid`)."""

    @classmethod
    def from_segmentations(cls, segmentations: Sequence[Any], size: Size) -> ObjectMasks:
        """Builds masks from the segmentations of an image file.

        Args:
            segmentations: as in COCO's annotations.
            size: (height, width) of the file in pixels.

        Raises:
            SegmentationError: If a segmentation is malformed (`detpool.masks.to_rles`).
        """
        pixels, extents = crop_rles(to_rles(segmentations, [size] * len(segmentations)))
        return cls(torch.from_numpy(pixels), torch.from_numpy(extents), _whole(size))

    @classmethod
    def from_dense(cls, masks: Tensor) -> ObjectMasks:
        """Builds masks from a tensor (n, H, W) of 0 and 1; shares its memory if it is uint8 and contiguous."""
        count, height, width = masks.shape
        starts = torch.arange(count, device=masks.device) * height * width
        sides = starts.new_tensor([0, 0, width, height]).expand(count, 4)
        grid = _whole((height, width)).to(masks.device)
        return cls(masks.to(torch.uint8).reshape(-1), torch.cat([sides, starts[:, None]], 1), grid)

    def __len__(self) -> int:
        return len(self.extents)

    @property
    def size(self) -> Size:
        """(height, width) of the image in pixels."""
        height, width = self.grid[:2].tolist()
        return height, width

    def crop(self, objects: Tensor, corners: Tensor, size: Size) -> Tensor:
        """Returns crops of several masks, all of one size.

        Args:
            objects: int64 (k,), index of the mask (0 to n - 1) for each crop.
            corners: int64 (k, 2), x and y of each crop's top left pixel.
            size: (height, width) of the crops in pixels. Crops must lie within the image.

        Returns:
            uint8 (k, height, width).
        """
        x, y, width, height, start = self.extents[objects, :, None].unbind(1)
        steps = [torch.arange(length, device=objects.device) for length in size]
        rows = self.grid[2 + corners[:, 1:] + steps[0]] - y
        columns = self.grid[2 + self.grid[0] + corners[:, :1] + steps[1]] - x
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        rows, columns = rows.clamp(min=0).minimum(height - 1), columns.clamp(min=0).minimum(width - 1)
        return self.pixels[(start + rows * width)[:, :, None] + columns[:, None]] * inside

    def dense(self) -> Tensor:
        """Returns the masks as a uint8 tensor (n, H, W)."""
        result = self.pixels.new_zeros(len(self), *self.size)
        corner = self.extents.new_zeros(1, 2)
        for row in range(len(self)):  # one at a time, because pixel indices take eight times the memory of the pixels
            result[row] = self.crop(corner[0, :1] + row, corner, self.size)[0]
        return result

    def to(self, device: torch.device | str) -> ObjectMasks:
        """Copies the masks to a device, asynchronously from page-locked memory, as Lightning copies tensors."""
        return ObjectMasks(*(part.to(device, non_blocking=part.is_pinned()) for part in _parts(self)))

    def pin_memory(self) -> ObjectMasks:
        return ObjectMasks(*(part.pin_memory() for part in _parts(self)))


def _parts(masks: ObjectMasks) -> list[Tensor]:
    return [getattr(masks, field.name) for field in fields(masks)]


register_pytree_node(ObjectMasks, lambda masks: (_parts(masks), None), lambda parts, _: ObjectMasks(*parts))


def _whole(size: Size) -> Grid:
    return _pack(*(torch.arange(side) for side in size))


def _pack(rows: Tensor, columns: Tensor) -> Grid:
    return torch.cat([torch.tensor([len(rows), len(columns)]), rows, columns]).as_subclass(Grid)


def _unpack(grid: Grid) -> list[Tensor]:
    """Returns the indices of the rows and those of the columns."""
    plain = grid.as_subclass(Tensor)
    return list(plain[2:].split(plain[:2].tolist()))


@F.register_kernel(F.resize, Grid)
def _resize(grid: Grid, size: list[int] | None, max_size: int | None = None, **_: Any) -> Grid:
    rows, columns = _unpack(grid)
    # For boxes, torchvision returns the new size of the image.
    canvas = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(len(rows), len(columns)))
    sides = F.resize(canvas, size, max_size=max_size).canvas_size
    return _pack(*(_nearest(lines, side) for lines, side in zip((rows, columns), sides, strict=True)))


def _nearest(lines: Tensor, side: int) -> Tensor:
    # As torchvision resizes masks; float32 represents every pixel index exactly.
    return torch.nn.functional.interpolate(lines[None, None].float(), side, mode="nearest")[0, 0].long()


@F.register_kernel(F.horizontal_flip, Grid)
def _flip_horizontally(grid: Grid) -> Grid:
    rows, columns = _unpack(grid)
    return _pack(rows, columns.flip(0))


@F.register_kernel(F.vertical_flip, Grid)
def _flip_vertically(grid: Grid) -> Grid:
    rows, columns = _unpack(grid)
    return _pack(rows.flip(0), columns)


@F.register_kernel(F.crop, Grid)
def _crop(grid: Grid, top: int, left: int, height: int, width: int) -> Grid:
    sides = zip(_unpack(grid), (top, left), (height, width), strict=True)
    return _pack(*(_shift(lines, start, length) for lines, start, length in sides))


@F.register_kernel(F.pad, Grid)
def _pad(grid: Grid, padding: int | list[int], **_: Any) -> Grid:
    # The padding is one number, two (left and right, top and bottom) or four.
    left, top, right, bottom = (4 * ([padding] if isinstance(padding, int) else list(padding)))[:4]
    rows, columns = _unpack(grid)
    return _crop(grid, -top, -left, len(rows) + top + bottom, len(columns) + left + right)


def _shift(lines: Tensor, start: int, length: int) -> Tensor:
    places = torch.arange(start, start + length)
    known = (places >= 0) & (places < len(lines))
    return torch.where(known, lines[places.clamp(0, len(lines) - 1)], -1)


def _refuse(grid: Grid, *args: Any, **kwargs: Any) -> Grid:
    raise TypeError(
        "masks of objects can be resized, flipped, cropped and padded, nothing else: see data.train_transform"
    )


for _functional in (
    F.affine,
    F.rotate,
    F.perspective,
    F.elastic,
    F.center_crop,
    F.resized_crop,
    F.five_crop,
    F.ten_crop,
):
    F.register_kernel(_functional, Grid)(_refuse)
