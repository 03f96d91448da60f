"""Memory formats of features and pooled tensors, and the type of positions in features."""

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor) -> bool:
    """Whether results that follow ``tensor`` should be channels_last: only if it is, unambiguously."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def cell_dtype(features: Tensor) -> torch.dtype:
    """The smallest integers that hold -1 and every cell of an image plane: less to keep for the backward."""
    return torch.int16 if features.shape[2] * features.shape[3] <= torch.iinfo(torch.int16).max else torch.int32
