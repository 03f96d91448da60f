#!/usr/bin/env python
"""Time and memory of each pooling layer against PyTorch's max pooling of the same input, in turns in one process.

    python tools/bench_pooling.py                                   # everything, tens of minutes on one core
    python tools/bench_pooling.py --layers LpPool2d SoftmaxPool2d --layouts channels_last

Maps are 8 x 64 x 100 x 152 float32, what a ResNet's stem makes of a batch of eight images of 400 x 608 pixels; token
layers pool the 49 cells of 512 RoIs of 256 channels. Each layer stands against max pooling over windows of the same
size and number: sliding ones of 3 x 3 at stride 2 with padding 1 against `max_pool2d` of that, tiles and adaptive,
global and token windows against `adaptive_max_pool2d`; the column `against` says which. Memory is the most that PyTorch
allocated at once during the call, beyond the input, the gradient of the output included in neither.

A layer without parameters should take at most four times as long; those that do not are listed at the end.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from bench.contenders import BACKWARD, FORWARD, LAYOUTS
from bench.output import console, write_json
from bench.timing import Summary, interleave, summarise
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, max_pool2d, max_pool3d
from torch.profiler import ProfilerActivity, profile

from detpool import layers
from detpool.files import write_text_atomically

LINE = 4.0
"""Times as long as max pooling that a layer without parameters may take."""
MAPS, ROIS = (8, 64, 100, 152), (512, 256, 7, 7)

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A layer, and the max pooling of the same input that it stands against."""

    build: Callable[[int], nn.Module]
    """from the number of channels"""
    against: str
    maximum: Call
    tokens: bool = False


def _sliding(build: Callable[..., nn.Module], **keywords: object) -> Case:
    return Case(lambda _: build(3, 2, 1, **keywords), "max_pool2d 3 x 3, stride 2", lambda x: max_pool2d(x, 3, 2, 1))


def _learned(build: Callable[..., nn.Module], **keywords: object) -> Case:
    return Case(lambda c: build(c, 3, 2, 1, **keywords), "max_pool2d 3 x 3, stride 2", lambda x: max_pool2d(x, 3, 2, 1))


def _adaptive(build: Callable[..., nn.Module], bins: int, *arguments: object, **keywords: object) -> Case:
    return Case(
        lambda _: build(*arguments, **keywords),
        f"adaptive_max_pool2d {bins} x {bins}",
        lambda x: adaptive_max_pool2d(x, bins),
    )


def _tokens(build: Callable[[int], nn.Module], masked: bool = False, weighted: bool = False) -> Case:
    def prepared(channels: int) -> nn.Module:
        return _OnTokens(build(channels), masked, weighted)

    if masked:
        return Case(prepared, "adaptive_max_pool2d 1 x 1, masked", _masked_maximum, tokens=True)
    return Case(prepared, "adaptive_max_pool2d 1 x 1", lambda x: adaptive_max_pool2d(x, 1), tokens=True)


def _mask() -> Tensor:
    """Half of the tokens of each RoI, the first always; (RoIs, tokens)."""
    images, _, height, width = ROIS
    mask = torch.rand(images, height * width, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 0] = True
    return mask


MASK = _mask()


def _masked_maximum(x: Tensor) -> Tensor:
    mask = MASK[: len(x)].view(-1, 1, *x.shape[2:])
    return adaptive_max_pool2d(torch.where(mask, x, -torch.inf), 1)


def _grids(x: Tensor) -> Tensor:
    return torch.cat([adaptive_max_pool2d(x, bins).flatten(1) for bins in (1, 2, 4)], dim=1)


def _neighbourhoods(x: Tensor) -> Tensor:
    return torch.cat([x, *(max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13))], dim=1)


def _channel_windows(x: Tensor) -> Tensor:
    return max_pool3d(x[:, None], (5, 1, 1), 1, (2, 0, 0))[:, 0]


class _OnTokens(nn.Module):
    """A token layer on the cells of maps, half of them masked if asked for."""

    def __init__(self, layer: nn.Module, masked: bool, weighted: bool) -> None:
        super().__init__()
        self.layer = layer
        self.mask = MASK if masked else None
        self.weights = torch.rand(MASK.shape) if weighted else None

    def forward(self, maps: Tensor) -> Tensor:
        tokens, count = layers.to_tokens(maps), len(maps)
        more = [] if self.weights is None else [self.weights[:count]]
        return self.layer(tokens, *more, None if self.mask is None else self.mask[:count])


CASES: dict[str, Case] = {
    "AvgPool2d": _sliding(layers.AvgPool2d),
    "SumPool2d": _sliding(layers.SumPool2d),
    "LpPool2d p=1": _sliding(layers.LpPool2d, p=1),
    "L2Pool2d": _sliding(layers.L2Pool2d),
    "LpPool2d p=3": _sliding(layers.LpPool2d, p=3),
    "LpPool2d p=2.5": _sliding(layers.LpPool2d, p=2.5),
    "SoftmaxPool2d": _sliding(layers.SoftmaxPool2d),
    "StochasticPool2d": _sliding(layers.StochasticPool2d),
    "StochasticPool2d eval": _sliding(lambda *a: layers.StochasticPool2d(*a).eval()),
    "MixedPool2d": _sliding(layers.MixedPool2d),
    "MixedPool2d eval": _sliding(lambda *a: layers.MixedPool2d(*a).eval()),
    "LPPool2d": Case(lambda _: layers.LPPool2d(3, 3, 2), "max_pool2d 3 x 3, stride 2", lambda x: max_pool2d(x, 3, 2)),
    "FractionalMaxPool2d": Case(
        lambda _: layers.FractionalMaxPool2d(3, output_ratio=0.5),
        "max_pool2d 3 x 3, stride 2",
        lambda x: max_pool2d(x, 3, 2, 1),
    ),
    "BlurPool2d": Case(
        lambda _: layers.BlurPool2d(3, 2), "max_pool2d 3 x 3, stride 2", lambda x: max_pool2d(x, 3, 2, 1)
    ),
    "MaxBlurPool2d": Case(
        lambda _: layers.MaxBlurPool2d(3, 2, 1), "max_pool2d 3 x 3, stride 1", lambda x: max_pool2d(x, 3, 1, 1)
    ),
    "TiledPool2d": Case(
        lambda _: layers.TiledPool2d(2), "max_pool2d 2 x 2, stride 2", lambda x: max_pool2d(x, 2, ceil_mode=True)
    ),
    "AdaptiveTiledPool2d": _adaptive(layers.AdaptiveTiledPool2d, 7, 7),
    "AdaptiveAvgPool2d": _adaptive(layers.AdaptiveAvgPool2d, 7, 7),
    "GlobalPool2d mean": _adaptive(layers.GlobalPool2d, 1),
    "GlobalPool2d sum": _adaptive(layers.GlobalPool2d, 1, "sum"),
    "GlobalPool2d max": _adaptive(layers.GlobalPool2d, 1, "max"),
    "GlobalLpPool2d": _adaptive(layers.GlobalLpPool2d, 1),
    "SpatialPyramidPool2d": Case(
        lambda _: layers.SpatialPyramidPool2d(), "adaptive_max_pool2d of 1, 2 and 4, concatenated", _grids
    ),
    "SpatialPyramidPool2d mean": Case(
        lambda _: layers.SpatialPyramidPool2d(reduction="mean"),
        "adaptive_max_pool2d of 1, 2 and 4, concatenated",
        _grids,
    ),
    "SpatialPyramidContext2d": Case(
        lambda _: layers.SpatialPyramidContext2d(),
        "max_pool2d of 5, 9 and 13, stride 1, concatenated",
        _neighbourhoods,
    ),
    "LocalResponseNorm": Case(
        lambda _: layers.LocalResponseNorm(5), "max_pool3d of 5 channels, stride 1", _channel_windows
    ),
    "ClsTokenPool": _tokens(lambda _: layers.ClsTokenPool()),
    "LastTokenPool masked": _tokens(lambda _: layers.LastTokenPool(), masked=True),
    "MeanTokenPool": _tokens(lambda _: layers.MeanTokenPool()),
    "MeanTokenPool masked": _tokens(lambda _: layers.MeanTokenPool(), masked=True),
    "MaxTokenPool": _tokens(lambda _: layers.MaxTokenPool()),
    "MaxTokenPool masked": _tokens(lambda _: layers.MaxTokenPool(), masked=True),
    "WeightedMeanTokenPool": _tokens(lambda _: layers.WeightedMeanTokenPool(), weighted=True),
    "LpPool2d learnable": _sliding(layers.LpPool2d, learnable=True),
    "SoftmaxPool2d learnable": _sliding(layers.SoftmaxPool2d, learnable=True),
    "StridedConv2d": _learned(layers.StridedConv2d),
    "LeNetSubsampling": _learned(layers.LeNetSubsampling),
    "LearnedMixedPool2d": _sliding(layers.LearnedMixedPool2d),
    "GatedPool2d": _learned(layers.GatedPool2d),
    "TreePool2d": _learned(layers.TreePool2d),
    "ASPP": Case(lambda c: layers.ASPP(c, c), "max_pool2d 3 x 3, stride 1", lambda x: max_pool2d(x, 3, 1, 1)),
    "LearnedMeanTokenPool": _tokens(layers.LearnedMeanTokenPool),
    "AttentionTokenPool": _tokens(layers.AttentionTokenPool),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: milliseconds and megabytes, the layer's and max pooling's."""

    layer: str
    parameters: int
    layout: str
    direction: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    rounds: int
    against: str
    max_pool_ms: float
    ratio: float
    """of the medians: how many times as long as max pooling"""
    memory_mb: float
    max_pool_memory_mb: float

    @property
    def misses(self) -> bool:
        return not self.parameters and self.ratio > LINE


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    begin, load = time.perf_counter(), {"before": os.getloadavg()}
    rows = []
    for name in options.layers:
        for layout in options.layouts:
            rows += measure(name, layout, options)
    load["after"] = os.getloadavg()
    _print(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    _write_csv(options.output / "pooling.csv", rows)
    command = ["python", "tools/bench_pooling.py", *(sys.argv[1:] if argv is None else argv)]
    write_json(options.output / "pooling.json", command, vars(options), time.perf_counter() - begin, load)
    return 0


def measure(name: str, layout: str, options: argparse.Namespace) -> list[Row]:
    """Both directions of one layer."""
    case = CASES[name]
    torch.manual_seed(0)
    images, channels, height, width = ROIS if case.tokens else MAPS
    shape = (min(images, options.images), channels, height, width)
    # About half of what leaves a rectifier is 0.
    input = torch.randn(shape).relu().contiguous(memory_format=LAYOUTS[layout])
    layer = case.build(channels).to(memory_format=LAYOUTS[layout])
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    rows = []
    for direction in (FORWARD, BACKWARD):
        build = _forward if direction == FORWARD else _forward_and_backward
        calls = {"layer": build(layer, input), "max": build(case.maximum, input)}
        times = interleave(calls, options.rounds, options.budget)
        found: dict[str, Summary] = {who: summarise(seconds) for who, seconds in times.items()}
        ours, theirs = found["layer"], found["max"]
        rows.append(
            Row(
                layer=name,
                parameters=parameters,
                layout=layout,
                direction=direction,
                median_ms=1e3 * ours.median,
                p20_ms=1e3 * ours.p20,
                p80_ms=1e3 * ours.p80,
                rounds=ours.rounds,
                against=case.against,
                max_pool_ms=1e3 * theirs.median,
                ratio=ours.median / theirs.median,
                memory_mb=peak_bytes(calls["layer"]) / 1e6,
                max_pool_memory_mb=peak_bytes(calls["max"]) / 1e6,
            )
        )
    return rows


def _forward(call: Call, input: Tensor) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.no_grad():
            return call(input)

    return run


def _forward_and_backward(call: Call, input: Tensor) -> Callable[[], object]:
    input = input.detach().requires_grad_()
    trained = [input, *(call.parameters() if isinstance(call, nn.Module) else ())]
    with torch.no_grad():
        grad = torch.randn_like(call(input))
    return partial(_gradients, call, input, trained, grad)


def _gradients(call: Call, input: Tensor, trained: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(input), trained, grad)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that PyTorch had allocated at once on the CPU during a call, beyond what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _print(rows: Sequence[Row]) -> None:
    out = console()
    table = Table(title="Milliseconds, and megabytes at most, in brackets max pooling's", title_justify="left")
    for column in ("layer", "layout", "direction"):
        table.add_column(column)
    for column in ("ms", "ratio", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("against")
    for row in rows:
        table.add_row(
            row.layer + (" *" if row.parameters else ""),
            row.layout,
            row.direction,
            f"{row.median_ms:.2f} ({row.max_pool_ms:.2f})",
            f"{row.ratio:.2f}x",
            f"{row.memory_mb:.1f} ({row.max_pool_memory_mb:.1f})",
            row.against,
            style="bold" if row.misses else "",
        )
    out.print(table)
    out.print("* has parameters")
    misses = [f"{row.layer}, {row.layout}, {row.direction}: {row.ratio:.1f}x" for row in rows if row.misses]
    out.print(f"Without parameters and slower than {LINE:g}x: {'; '.join(misses) or 'none'}")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in vars(row).items()})
    write_text_atomically(path, text.getvalue())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--layers", nargs="+", choices=CASES, metavar="NAME", default=list(CASES), help="default: all")
    add("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: both")
    add("--images", type=int, default=max(MAPS[0], ROIS[0]), help="at most so many maps or RoIs, for a try")
    add("--rounds", type=int, default=30, help="times each call is timed at most; default: 30")
    add("--budget", type=float, default=10, help="seconds a case after which no round begins; default: 10")
    add("--output", type=Path, default=Path("logs/bench_pooling"), help="default: %(default)s")
    options = parser.parse_args(argv)
    if min(options.images, options.rounds) < 1:
        parser.error(f"--images and --rounds must be positive, got {options.images} and {options.rounds}")
    return options


if __name__ == "__main__":
    sys.exit(main())
