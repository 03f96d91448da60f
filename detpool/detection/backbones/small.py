"""A small residual network that trains from scratch on two CPU cores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detpool.detection.backbones.body import StagedBody
from detpool.detection.slots import LayerFactory, build_downsampling, find_factor
from detpool.errors import ConfigError, check_numbers


def _conv_bn(channels_in: int, channels_out: int, stride: int = 1, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class _Residual(nn.Module):
    """Basic block of ResNet (He et al., CVPR 2016): two 3 x 3 convolutions and a shortcut.

    With `downsample`, this layer replaces a stride: one after the activation of the first convolution, another before
    the shortcut's convolution (Zhang, arXiv:1904.11486, 2019, section 3.2, and its published ResNets).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        dilations: tuple[int, int] = (1, 1),
        downsample: LayerFactory | None = None,
    ) -> None:
        super().__init__()
        step = stride if downsample is None else 1
        self.conv1 = _conv_bn(channels_in, channels_out, step, dilation=dilations[0])
        self.conv2 = _conv_bn(channels_out, channels_out, dilation=dilations[1])
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else _conv_bn(channels_in, channels_out, step, kernel=1)
        self.pool: nn.Module = nn.Identity()
        self.shortcut_pool: nn.Module = nn.Identity()
        if downsample is not None and stride > 1:
            self.pool = build_downsampling(downsample, channels_out, "downsample")
            self.shortcut_pool = build_downsampling(downsample, channels_in, "downsample")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.pool(F.relu(self.conv1(x)))) + self.shortcut(self.shortcut_pool(x)))


class SmallCNN(StagedBody):
    """A ResNet with a thin stem of two convolutions; stages have strides 4, 8, ... unless a slot has another factor.

    Args:
        widths: channels of each stage (default: four stages with strides 4 to 32).
        depth: number of residual blocks per stage.
        min_stride: stride in pixels of the finest returned map (relative tolerance 0.001). With 8 the map of the first
            stage is left out, which saves most of the cost of a pyramid.
        output_stride: stages beyond this stride keep the resolution and use dilated convolutions.
        stem_pool: layer that replaces the stem's second stride of 2, after that convolution and its activation.
        downsample: layer that replaces the stride of 2 of each stage that has one: after the first convolution and its
            activation, and before the convolution of the shortcut. Without these layers convolutions are strided.

    Raises:
        ConfigError: If a number is out of range, no stage has the stride `min_stride` or `output_stride`, the maps of
            `stem_pool` or `downsample` do not have the size that it declares, no stage has a stride that `downsample`
            could replace, or stages would be dilated although `downsample` has another factor than 2.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 96, 128),
        depth: int = 1,
        min_stride: float = 4,
        output_stride: int = 32,
        stem_pool: LayerFactory | None = None,
        downsample: LayerFactory | None = None,
    ) -> None:
        if not widths:
            raise ConfigError("backbone.widths must hold the channels of one stage at least, got []")
        check_numbers("backbone", "at least 1", lambda n: n >= 1, depth=depth, widths=widths)
        factor = find_factor(downsample, "downsample")
        strides = [2 * find_factor(stem_pool, "stem_pool") * factor**level for level in range(len(widths))]
        starts = [level for level, stride in enumerate(strides) if math.isclose(stride, min_stride, rel_tol=1e-3)]
        inner = any(math.isclose(output_stride, stride) for stride in strides) and factor == 2
        # A body of fewer than four stages ends before the default output stride.
        for name, value, fits in (
            ("min_stride", min_stride, bool(starts)),
            ("output_stride", output_stride, inner or output_stride > strides[-1] - 1e-6),
        ):
            if not fits:
                known = f"[{', '.join(f'{stride:.4g}' for stride in strides)}], the strides of the stages"
                dilated = f"; stages that downsample makes {factor:.4g} times smaller cannot be dilated" * (factor != 2)
                raise ConfigError(f"backbone.{name} must be one of {known}, got {value}{dilated}")
        if downsample is not None and min(output_stride, strides[-1]) == strides[0]:
            raise ConfigError(
                f"downsample replaces strides between stages, and with backbone.output_stride={output_stride} and "
                f"{len(widths)} stages there are none"
            )
        step = 2 if stem_pool is None else 1
        stem = nn.Sequential(_conv_bn(3, widths[0], 2), nn.ReLU(), _conv_bn(widths[0], widths[0], step), nn.ReLU())
        if stem_pool is not None:
            stem.append(build_downsampling(stem_pool, widths[0], "stem_pool"))
        stages = {}
        for level, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            # The convolution that loses its stride of 2 reads the same cells as before; those after it are dilated.
            before, dilation = (max(1, int(s // output_stride)) for s in (stride / 2, stride))
            step = 1 if level == 0 or dilation > 1 else 2
            blocks = [_Residual(widths[max(level - 1, 0)], width, step, (before, dilation), downsample)]
            blocks += [_Residual(width, width, 1, (dilation, dilation)) for _ in range(depth - 1)]
            stages[f"stage{level + 1}"] = nn.Sequential(*blocks)
        super().__init__({"stem": stem}, stages, widths, [min(s, output_stride) for s in strides], starts[0])
