"""Context layers, which keep the size of maps and enlarge the receptive field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torchvision.models.segmentation import deeplabv3

from detpool.ops import formulas
from detpool.ops.inputs import check_features, positive
from detpool.ops.layout import is_channels_last, memory_format


class SpatialPyramidContext2d(nn.Module):
    """Concatenates a map and its maxima over windows of several sizes: ``Y = (f, max_5 f, max_9 f, max_13 f)``.

    (N, C, H, W) to (N, C (1 + windows), H, W). No parameters; training and evaluation are the same. Source: He et al.,
    SPP-Net, arXiv:1406.4729, 2014, in the form of Redmon and Farhadi's YOLOv3-SPP, arXiv:1804.02767, 2018, and Huang et
    al., DC-SPP-YOLO, arXiv:1903.08589, 2019.

    Args:
        kernel_sizes: sizes of the windows in cells: odd, at least 3, increasing.

    Raises:
        ValueError: If the sizes are invalid.
    """

    def __init__(self, kernel_sizes: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        sizes = list(kernel_sizes)
        if not sizes or sizes != sorted(set(sizes)) or any(size < 3 or size % 2 == 0 for size in sizes):
            raise ValueError(f"kernel_sizes must be odd, 3 or more, and increasing, got {kernel_sizes!r}")
        self.kernel_sizes = sizes

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C (1 + windows), H, W)."""
        check_features(input)
        maps, previous = [input], 1
        for size in self.kernel_sizes:
            # The maximum over 9 cells is the maximum of 5 maxima over 5 cells, so reuse the previous window.
            step = size - previous + 1
            maps.append(max_pool2d(maps[-1], step, stride=1, padding=step // 2))
            previous = size
        return torch.cat(maps, dim=1)

    def extra_repr(self) -> str:
        return f"kernel_sizes={self.kernel_sizes}"


class ASPP(deeplabv3.ASPP):
    """torchvision's atrous spatial pyramid pooling with image-level features.

    The outputs of a 1 x 1 convolution, of 3 x 3 convolutions with dilation ``rates``, and of a 1 x 1 convolution of the
    global average, broadcast over the map, are concatenated and projected by a 1 x 1 convolution. Each convolution is
    followed by batch normalization and ReLU. Training ends with dropout of one half, and needs at least two images (for
    the batch statistics of the global average).
    (N, C, H, W) to (N, out_channels, H, W). Source: Chen, Papandreou, Schroff and Adam, DeepLabv3, arXiv:1706.05587,
    2017, section 3.3.

    Args:
        channels: C.
        out_channels: number of channels of every branch and of the output.
        rates: dilations; those of DeepLabv3 are 6, 12, 18 at output stride 16, and twice as much at 8.

    Raises:
        ValueError: If channels or rates are not positive integers.
    """

    def __init__(self, channels: int, out_channels: int = 256, rates: Sequence[int] = (6, 12, 18)) -> None:
        if not rates:
            raise ValueError("rates must be positive integers, at least one, got none")
        dilations = [positive(rate, "rates") for rate in rates]
        super().__init__(positive(channels, "channels"), dilations, positive(out_channels, "out_channels"))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H, W)."""
        check_features(input)
        *branches, image = [branch(input) for branch in self.convs]
        # Broadcast from one cell, it has no memory format of its own, so set that of the input.
        image = image.contiguous(memory_format=memory_format(is_channels_last(input)))
        return self.project(torch.cat([*branches, image], dim=1))


class LocalResponseNorm(nn.LocalResponseNorm):
    """PyTorch's layer: ``Y[c] = f[c] / (k + alpha / size sum f[c']^2)^beta``, sum over ``size`` channels around c.

    Missing channels count as zeros. float16 and bfloat16 are computed in float32. No parameters; training and
    evaluation are the same. Source: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional
    Neural Networks, NeurIPS 2012, section 3.3 (there alpha is not divided by ``size``).

    Args:
        size: number of channels of a neighborhood.
        alpha, beta, k: as in the formula; default: 1e-4, 0.75, 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        check_features(input)
        return super().forward(formulas.widened(input)).to(input.dtype)
