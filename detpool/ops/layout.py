"""Memory formats and dtypes of what operators compute."""

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor) -> bool:
    """Whether results that follow ``tensor`` should be channels_last: only if it is, unambiguously."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_format(channels_last: bool) -> torch.memory_format:
    """That of features (N, C, H, W)."""
    return torch.channels_last if channels_last else torch.contiguous_format


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of boxes, weights and sums: float64 for float64 features, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cell_dtype(cells: int) -> torch.dtype:
    """The smallest integers that hold -1 and every cell of an image plane: less to keep for the backward."""
    return torch.int16 if cells <= torch.iinfo(torch.int16).max else torch.int32
