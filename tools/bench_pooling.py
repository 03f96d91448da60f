#!/usr/bin/env python
"""Compares time and memory of each pooling layer with PyTorch's max pooling of the same input, in turns in one process.

    python tools/bench_pooling.py                                   # everything, tens of minutes on one core
    python tools/bench_pooling.py --layers LpPool2d SoftmaxPool2d --layouts channels_last

Maps are 8 x 64 x 100 x 152 float32, like those of a ResNet's stem for a batch of eight images of 400 x 608 pixels;
token layers pool the 49 cells of 512 RoIs with 256 channels. Each layer is compared with max pooling over windows of
the same size and number: sliding windows of 3 x 3 at stride 2 with padding 1 with `max_pool2d`, and tiles, adaptive,
global and token windows with `adaptive_max_pool2d`; the column `against` says which. Memory is the peak that PyTorch
allocated during the call, without the input and the gradient of the output.

A layer without parameters should take at most four times as long; those that take longer are listed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bench.contenders import BACKWARD, FORWARD, LAYOUTS
from bench.output import Table, recorded, write_csv
from bench.timing import measure
from command_line import Parser, positive_int
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, max_pool2d, max_pool3d
from torch.profiler import ProfilerActivity, profile

from detpool import layers

LINE = 4.0
"""Maximum time of a layer without parameters, relative to max pooling."""
MAPS, ROIS = (8, 64, 100, 152), (512, 256, 7, 7)
WINDOW = (3, 2, 1)
"""Kernel size, stride and padding."""

Call = Callable[[Tensor], Tensor]


def _mask() -> Tensor:
    """Mask (RoIs, tokens) with about half of the tokens of each RoI, always including the first."""
    images, _, height, width = ROIS
    mask = torch.rand(images, height * width, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 0] = True
    return mask


MASK = _mask()


def _masked_maximum(x: Tensor) -> Tensor:
    return adaptive_max_pool2d(torch.where(MASK[: len(x)].view(-1, 1, *x.shape[2:]), x, -torch.inf), 1)


def _grids(x: Tensor) -> Tensor:
    return torch.cat([adaptive_max_pool2d(x, bins).flatten(1) for bins in (1, 2, 4)], dim=1)


def _neighborhoods(x: Tensor) -> Tensor:
    return torch.cat([x, *(max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13))], dim=1)


MAXIMA: dict[str, Call] = {
    "max_pool2d 3 x 3, stride 2": lambda x: max_pool2d(x, 3, 2, 1),
    "max_pool2d 3 x 3, stride 1": lambda x: max_pool2d(x, 3, 1, 1),
    "max_pool2d 2 x 2, stride 2": lambda x: max_pool2d(x, 2, ceil_mode=True),
    "adaptive_max_pool2d 7 x 7": lambda x: adaptive_max_pool2d(x, 7),
    "adaptive_max_pool2d 1 x 1": lambda x: adaptive_max_pool2d(x, 1),
    "adaptive_max_pool2d 1 x 1, masked": _masked_maximum,
    "adaptive_max_pool2d of 1, 2 and 4, concatenated": _grids,
    "max_pool2d of 5, 9 and 13, stride 1, concatenated": _neighborhoods,
    "max_pool3d of 5 channels, stride 1": lambda x: max_pool3d(x[:, None], (5, 1, 1), 1, (2, 0, 0))[:, 0],
}
SLIDING, DENSE, TILED, ADAPTIVE, GLOBAL, MASKED, GRIDS, NEIGHBORHOODS, CHANNELS = MAXIMA


@dataclass(frozen=True)
class Case:
    """A layer, and the max pooling of the same input with which it is compared."""

    against: str
    """Name in `MAXIMA`."""
    build: Callable[[int], nn.Module]
    """Builds the layer for a number of channels."""
    tokens: bool = False

    def maximum(self, x: Tensor) -> Tensor:
        return MAXIMA[self.against](x)


class OnTokens(nn.Module):
    """A token layer on the cells of maps, optionally with a mask or weights."""

    def __init__(self, layer: nn.Module, masked: bool = False, weighted: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.mask = MASK if masked else None
        self.weights = torch.rand(MASK.shape) if weighted else None

    def forward(self, maps: Tensor) -> Tensor:
        given = [None if values is None else values[: len(maps)] for values in (self.weights, self.mask)]
        return self.layer(layers.to_tokens(maps), *(given if self.weights is not None else given[1:]))


CASES: dict[str, Case] = {
    "AvgPool2d": Case(SLIDING, lambda _: layers.AvgPool2d(*WINDOW)),
    "MeanPool2d": Case(SLIDING, lambda _: layers.MeanPool2d(*WINDOW)),
    "MeanPool2d same": Case(SLIDING, lambda _: layers.MeanPool2d(3, 2, "same")),
    "SoftmaxPool2d same": Case(SLIDING, lambda _: layers.SoftmaxPool2d(3, 2, "same")),
    "SumPool2d": Case(SLIDING, lambda _: layers.SumPool2d(*WINDOW)),
    "LpPool2d p=1": Case(SLIDING, lambda _: layers.LpPool2d(*WINDOW, p=1)),
    "L2Pool2d": Case(SLIDING, lambda _: layers.L2Pool2d(*WINDOW)),
    "LpPool2d p=3": Case(SLIDING, lambda _: layers.LpPool2d(*WINDOW, p=3)),
    "LpPool2d p=2.5": Case(SLIDING, lambda _: layers.LpPool2d(*WINDOW, p=2.5)),
    "SoftmaxPool2d": Case(SLIDING, lambda _: layers.SoftmaxPool2d(*WINDOW)),
    "StochasticPool2d": Case(SLIDING, lambda _: layers.StochasticPool2d(*WINDOW)),
    "StochasticPool2d eval": Case(SLIDING, lambda _: layers.StochasticPool2d(*WINDOW).eval()),
    "MixedPool2d": Case(SLIDING, lambda _: layers.MixedPool2d(*WINDOW)),
    "MixedPool2d eval": Case(SLIDING, lambda _: layers.MixedPool2d(*WINDOW).eval()),
    "LPPool2d": Case(SLIDING, lambda _: layers.LPPool2d(3, 3, 2)),
    "FractionalMaxPool2d": Case(SLIDING, lambda _: layers.FractionalMaxPool2d(3, output_ratio=0.5)),
    "FractionalRegionPool2d": Case(SLIDING, lambda _: layers.FractionalRegionPool2d(2)),
    "BlurPool2d": Case(SLIDING, lambda _: layers.BlurPool2d(3, 2)),
    "MaxBlurPool2d": Case(DENSE, lambda _: layers.MaxBlurPool2d(3, 2, 1)),
    "TiledPool2d": Case(TILED, lambda _: layers.TiledPool2d(2)),
    "AdaptiveTiledPool2d": Case(ADAPTIVE, lambda _: layers.AdaptiveTiledPool2d(7)),
    "AdaptiveAvgPool2d": Case(ADAPTIVE, lambda _: layers.AdaptiveAvgPool2d(7)),
    "GlobalPool2d mean": Case(GLOBAL, lambda _: layers.GlobalPool2d()),
    "GlobalPool2d sum": Case(GLOBAL, lambda _: layers.GlobalPool2d("sum")),
    "GlobalPool2d max": Case(GLOBAL, lambda _: layers.GlobalPool2d("max")),
    "GlobalLpPool2d": Case(GLOBAL, lambda _: layers.GlobalLpPool2d()),
    "GlobalLpPool2d p=2.5": Case(GLOBAL, lambda _: layers.GlobalLpPool2d(2.5)),
    "SpatialPyramidPool2d": Case(GRIDS, lambda _: layers.SpatialPyramidPool2d()),
    "SpatialPyramidPool2d mean": Case(GRIDS, lambda _: layers.SpatialPyramidPool2d(reduction="mean")),
    "SpatialPyramidContext2d": Case(NEIGHBORHOODS, lambda _: layers.SpatialPyramidContext2d()),
    "LocalResponseNorm": Case(CHANNELS, lambda _: layers.LocalResponseNorm(5)),
    "ClsTokenPool": Case(GLOBAL, lambda _: OnTokens(layers.ClsTokenPool()), tokens=True),
    "LastTokenPool masked": Case(MASKED, lambda _: OnTokens(layers.LastTokenPool(), masked=True), tokens=True),
    "MeanTokenPool": Case(GLOBAL, lambda _: OnTokens(layers.MeanTokenPool()), tokens=True),
    "MeanTokenPool masked": Case(MASKED, lambda _: OnTokens(layers.MeanTokenPool(), masked=True), tokens=True),
    "MaxTokenPool": Case(GLOBAL, lambda _: OnTokens(layers.MaxTokenPool()), tokens=True),
    "MaxTokenPool masked": Case(MASKED, lambda _: OnTokens(layers.MaxTokenPool(), masked=True), tokens=True),
    "WeightedMeanTokenPool": Case(
        GLOBAL, lambda _: OnTokens(layers.WeightedMeanTokenPool(), weighted=True), tokens=True
    ),
    "LpPool2d learnable": Case(SLIDING, lambda _: layers.LpPool2d(*WINDOW, learnable=True)),
    "SoftmaxPool2d learnable": Case(SLIDING, lambda _: layers.SoftmaxPool2d(*WINDOW, learnable=True)),
    "StridedConv2d": Case(SLIDING, lambda channels: layers.StridedConv2d(channels, *WINDOW)),
    "LeNetSubsampling": Case(SLIDING, lambda channels: layers.LeNetSubsampling(channels, *WINDOW)),
    "LearnedMixedPool2d": Case(SLIDING, lambda _: layers.LearnedMixedPool2d(*WINDOW)),
    "GatedPool2d": Case(SLIDING, lambda channels: layers.GatedPool2d(channels, *WINDOW)),
    "TreePool2d": Case(SLIDING, lambda channels: layers.TreePool2d(channels, *WINDOW)),
    "ASPP": Case(DENSE, lambda channels: layers.ASPP(channels, channels)),
    "LearnedMeanTokenPool": Case(GLOBAL, lambda channels: OnTokens(layers.LearnedMeanTokenPool(channels)), tokens=True),
    "AttentionTokenPool": Case(GLOBAL, lambda channels: OnTokens(layers.AttentionTokenPool(channels)), tokens=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_names("--layers", CASES, "default: all", default=list(CASES))
    parser.add_names("--layouts", LAYOUTS, "default: ALL", default=list(LAYOUTS))
    text = "at most so many maps or RoIs, for a try"
    parser.add_argument("--images", type=positive_int, default=max(MAPS[0], ROIS[0]), metavar="N", help=text)
    parser.add_timing(rounds=30, budget=10, output="logs/bench_pooling")
    options = parser.parse_args(argv)
    with recorded(options.output / "pooling.json", "tools/bench_pooling.py", argv, options):
        cases = [(name, layout) for name in options.layers for layout in options.layouts]
        records = [record for name, layout in cases for record in measure_layer(name, layout, options)]
        _print(records)
        write_csv(options.output / "pooling.csv", records)
    return 0


def measure_layer(name: str, layout: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a layer in both directions: milliseconds and megabytes of the layer and of max pooling."""
    case = CASES[name]
    torch.manual_seed(0)
    images, channels, height, width = ROIS if case.tokens else MAPS
    # ReLU, since about half of the values of real feature maps are 0.
    input = torch.randn(min(images, options.images), channels, height, width).relu()
    input = input.contiguous(memory_format=LAYOUTS[layout])
    layer = case.build(channels).to(memory_format=LAYOUTS[layout])
    records = []
    for direction, build in {FORWARD: _forward, BACKWARD: _forward_and_backward}.items():
        calls = {"layer": build(layer, input), "max": build(case.maximum, input)}
        ours, theirs = measure(calls, options.rounds, options.budget).values()
        records.append(
            {
                "layer": name,
                "parameters": sum(parameter.numel() for parameter in layer.parameters()),
                "layout": layout,
                "direction": direction,
                **ours.columns(),
                "rounds": ours.rounds,
                "against": case.against,
                "max_pool_ms": 1e3 * theirs.median,
                "ratio": ours.median / theirs.median,
                "memory_mb": peak_bytes(calls["layer"]) / 1e6,
                "max_pool_memory_mb": peak_bytes(calls["max"]) / 1e6,
            }
        )
    return records


def _forward(call: Call, input: Tensor) -> Callable[[], object]:
    return partial(torch.no_grad()(call), input)


def _forward_and_backward(call: Call, input: Tensor) -> Callable[[], object]:
    input = input.detach().requires_grad_()
    trained = [input, *(call.parameters() if isinstance(call, nn.Module) else ())]
    with torch.no_grad():
        grad = torch.randn_like(call(input))
    return lambda: torch.autograd.grad(call(input), trained, grad)


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak memory in bytes that PyTorch allocated on the CPU during a call, beyond that allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _print(records: Sequence[dict[str, Any]]) -> None:
    title = "Milliseconds, and megabytes at most, in brackets max pooling's"
    table = Table(title, ("layer", "layout", "direction"), ("ms", "ratio", "MB"), ["against"])
    misses = []
    for record in records:
        layer, layout, direction, ratio = (record[key] for key in ("layer", "layout", "direction", "ratio"))
        slow = ratio > LINE and not record["parameters"]
        misses += [f"{layer}, {layout}, {direction}: {ratio:.1f}x"] * slow
        table.add_row(
            layer + (" *" if record["parameters"] else ""),
            layout,
            direction,
            f"{record['median_ms']:.2f} ({record['max_pool_ms']:.2f})",
            f"{ratio:.2f}x",
            f"{record['memory_mb']:.1f} ({record['max_pool_memory_mb']:.1f})",
            record["against"],
        )
    print(table)
    print("* has parameters")
    print(f"Without parameters and slower than {LINE:g}x: {'; '.join(misses) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
