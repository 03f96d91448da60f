"""A hundred thousand boxes of every kind through every operator, backend, layout, dtype and mode.

DETPOOL_FUZZ_BOXES=1000000 python -m pytest tests/ops/test_fuzz.py    # more of them
"""

import os
import zlib

import pytest
import torch
from torch import Tensor

from detpool import ops

BOXES = int(os.environ.get("DETPOOL_FUZZ_BOXES", "100000"))
IMAGES, HEIGHT, WIDTH, SCALE, SIZE = 2, 9, 11, 0.25, (3, 2)
LARGEST = torch.finfo(torch.float32).max


def rotate(boxes: Tensor) -> Tensor:
    """Sides of up to 20 cells, and no point exactly on a cell, where sines that differ in a bit choose the gradient."""
    sides = (boxes[:, 3:] - boxes[:, 1:3]).clamp(max=80)
    return torch.cat([boxes[:, :1], boxes[:, 1:3] + 0.0137, sides, boxes[:, 2:3] % 360 + 0.1], dim=1)


LP = ops.reductions.Lp(40.0)
OPERATORS = {
    # name: (channels per output channel, call, whether boxes get gradients)
    "roi_pool": (1, lambda f, b, o, **k: ops.roi_pool(f, b, SIZE, SCALE, **k), False),
    "roi_align": (1, lambda f, b, o, **k: ops.roi_align(f, b, SIZE, SCALE, 2, True, **k), True),
    "roi_align adaptive": (1, lambda f, b, o, **k: ops.roi_align(f, b, SIZE, SCALE, **k), True),
    "roi_align maximum": (1, lambda f, b, o, **k: ops.roi_align(f, b, SIZE, SCALE, reduction="max", **k), True),
    "roi_warp": (1, lambda f, b, o, **k: ops.roi_warp(f, b, SIZE, SCALE, **k), False),
    "ps_roi_pool": (6, lambda f, b, o, **k: ops.ps_roi_pool(f, b, SIZE, SCALE, **k), False),
    "ps_roi_pool rfcn": (6, lambda f, b, o, **k: ops.ps_roi_pool(f, b, SIZE, SCALE, convention="rfcn", **k), False),
    "ps_roi_align": (6, lambda f, b, o, **k: ops.ps_roi_align(f, b, SIZE, SCALE, 2, **k), True),
    "pr_roi_pool": (1, lambda f, b, o, **k: ops.pr_roi_pool(f, b, SIZE, SCALE, **k), True),
    "deform_roi_pool": (1, lambda f, b, o, **k: ops.deform_roi_pool(f, b, o, SIZE, SCALE, 2, **k), True),
    "deform_ps_roi_pool": (6, lambda f, b, o, **k: ops.deform_ps_roi_pool(f, b, o, SIZE, SCALE, **k), False),
    "roi_align_rotated": (1, lambda f, b, o, **k: ops.roi_align_rotated(f, rotate(b), SIZE, SCALE, 2, **k), True),
    "lp of cells": (
        1,
        lambda f, b, o, **k: ops.pool(f, b, SIZE, SCALE, bins="rounded", sampling="cells", reduction=LP, **k),
        False,
    ),
}
COMPILED = (torch.float32, "contiguous")
"""The only dtype and layout that are traced, which takes longer than thousands of boxes."""
TRACED_REFERENCES = ("roi_pool", "roi_align", "pr_roi_pool", "lp of cells")
LAYOUTS = ("contiguous", "channels_last", "strided")
# float16 and bfloat16 are computed in float32 and rounded; gradients of features sum over the boxes of a cell
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def make_boxes(count: int, generator: torch.Generator) -> Tensor:
    """(count, 5): ordinary, tiny, huge, integral and half-integral edges, no area, at the border, far outside."""
    extent = torch.tensor([WIDTH, HEIGHT]) / SCALE
    start = (2 * torch.rand(count, 2, generator=generator) - 0.5) * extent
    side = extent * 10 ** (4 * torch.rand(count, 2, generator=generator) - 3.5)
    kind = torch.randint(0, 10, (count,), generator=generator)
    magnitude = 10.0 ** torch.randint(-38, 38, (count, 1), generator=generator)
    side[kind == 1] = magnitude[kind == 1] * torch.rand(int((kind == 1).sum()), 2, generator=generator)
    side[kind == 2] = 0
    side[kind == 3, 1] = 0
    corners = torch.cat([start, start + side], dim=1)
    corners[kind == 4] = corners[kind == 4].round()
    corners[kind == 5] = (corners[kind == 5] / 2).round() * 2
    corners[kind == 6] = (corners[kind == 6] / 4).round() * 4
    far = kind == 7
    corners[far] = (2 * torch.rand(int(far.sum()), 4, generator=generator) - 1) * magnitude[far]
    corners[kind == 8, :2] = -LARGEST
    corners[(kind == 8) & (start[:, 0] > 0), 2:] = LARGEST
    corners[kind == 9] = corners[kind == 9].clamp(min=0).minimum(torch.cat([extent, extent]))
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
    image = torch.randint(0, IMAGES, (count, 1), generator=generator).float()
    return torch.cat([image, low, high], dim=1)


def make_features(channels: int, layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    features = torch.randn(IMAGES, channels, HEIGHT, WIDTH, generator=generator).relu().to(dtype)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        features = features.transpose(2, 3).contiguous().transpose(2, 3)
    return features


def check_close(name: str, got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.isfinite().all(), f"{name} is not finite"
    scale = max(1.0, float(expected.detach().double().abs().max())) if expected.numel() else 1.0
    error = (got.double() - expected.double()).abs().max().item() / scale if expected.numel() else 0.0
    assert error <= TOLERANCE[dtype], f"{name}: {error}"


@pytest.mark.parametrize("name", OPERATORS)
def test_every_mode_gives_the_same_finite_numbers(name: str) -> None:
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    groups, call, with_boxes = OPERATORS[name]

    def compiled_call(features, boxes, offsets, backend):
        return call(features, boxes, offsets, backend=backend)

    compiled = torch.compile(compiled_call, fullgraph=True, dynamic=True, backend="aot_eager")
    combinations = [(dtype, layout) for dtype in TOLERANCE for layout in LAYOUTS]
    count = -(-BOXES // (len(OPERATORS) * len(combinations)))
    for dtype, layout in combinations:
        features = make_features(2 * groups, layout, dtype, generator)
        boxes = make_boxes(count, generator).to(torch.float64 if dtype == torch.float64 else torch.float32)
        offsets = torch.randn(count, 2, *SIZE, generator=generator).to(boxes.dtype)
        cotangent = None
        expected = None
        modes = [("eager", "reference"), ("eager", "cpu")]
        if (dtype, layout) == COMPILED:
            modes += [("compiled", "cpu")] + [("compiled", "reference")] * (name in TRACED_REFERENCES)
        for mode, backend in modes:
            # adaptive sampling in a traced reference has as many points as the map allows: a few boxes tell
            few = slice(0, 20 if (mode, backend) == ("compiled", "reference") else None)
            inputs = [t.detach().clone().requires_grad_() for t in (features, boxes[few], offsets[few])]
            output = (compiled if mode == "compiled" else call)(*inputs, backend=backend)
            label = f"{mode} {backend} {dtype} {layout}"
            if few.stop is not None:
                check_close(label, output, expected[0][few], dtype)
                continue
            if cotangent is None:
                cotangent = torch.randn(output.shape, generator=generator).to(dtype)
            needed = [0, *([1] if with_boxes else []), *([2] if "deform" in name else [])]
            grads = torch.autograd.grad(output, [inputs[n] for n in needed], cotangent)
            if expected is None:
                expected = (output, *grads)
            for number, (got, wanted) in enumerate(zip((output, *grads), expected, strict=True)):
                check_close(f"{label}, {number}", got, wanted, dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_whatever_is_not_valid_is_named(name: str) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    groups, call, _ = OPERATORS[name]
    features = make_features(groups, "contiguous", torch.float32, generator)
    wrong = [
        ("boxes must be finite", 1, torch.nan),
        ("boxes must be finite", 2, torch.inf),
        ("boxes must be finite", 3, -torch.inf),
        (r"boxes\[{row}, 0\] must be the index", 0, 0.5),
        (r"boxes\[{row}, 0\] must be the index", 0, -0.5),
        (r"boxes\[{row}, 0\] must be the index", 0, 2.0),
        (r"boxes\[{row}, 0\] must be the index", 0, torch.nan),
    ]
    if "rotated" not in name:
        wrong.append(("x1 <= x2 and y1 <= y2", 1, LARGEST))
    for backend in ("cpu", "reference"):
        for message, column, value in wrong:
            boxes = make_boxes(7, generator)
            row = int(torch.randint(0, 7, (), generator=generator))
            boxes[row] = torch.tensor([0.0, 4, 4, 12, 12])
            boxes[row, column] = value
            pattern = message.replace("{row}", str(row)) if "{row}" in message else f"{message}.* at row {row}"
            with pytest.raises(ValueError, match=pattern):
                call(features, boxes, torch.zeros(7, 2, *SIZE), backend=backend)
