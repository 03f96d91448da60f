"""COCO's segmentations as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Polygons, uncompressed or compressed run-length encoding as an array of 0 and 1.

    Args:
        segmentation: as in COCO's annotations.
        size: (height, width) of the image in pixels.

    Returns:
        uint8 (height, width).

    Raises:
        ValueError, TypeError: the segmentation is malformed.
    """
    if isinstance(segmentation, list):
        segmentation = rle.merge(rle.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, *size)
    return rle.decode(segmentation)
