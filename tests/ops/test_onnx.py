"""ONNX programs of the operators, run by ONNX Runtime."""

from functools import partial

import pytest
import torch
from ops_cases import random_boxes

from detpool import ops
from detpool.poolers import RoIPooler

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

from detpool.ops import onnx  # noqa: E402

CHANNELS = 12
SHAPE = (2, 3)
OFFSETS = torch.linspace(-1, 1, 2 * SHAPE[0] * SHAPE[1]).reshape(1, 2, *SHAPE)
OPERATORS = {
    "roi_pool": ops.roi_pool,
    "roi_align": partial(ops.roi_align, sampling_ratio=2, aligned=True),
    "roi_align unaligned adaptive": ops.roi_align,
    "roi_align max": partial(ops.roi_align, sampling_ratio=2, reduction="max"),
    "roi_align max adaptive": partial(ops.roi_align, aligned=True, reduction="max"),
    "roi_warp": partial(ops.roi_warp, sampling_ratio=2),
    "ps_roi_pool": partial(ops.ps_roi_pool, convention="rfcn"),
    "ps_roi_align": ops.ps_roi_align,
    "ps_roi_align max": partial(ops.ps_roi_align, reduction="max"),
    "pr_roi_pool": ops.pr_roi_pool,
    "deform_roi_pool": lambda f, b, *sizes: ops.deform_roi_pool(
        f, b, OFFSETS.expand(b.shape[0], -1, -1, -1), *sizes, 2
    ),
    "deform_roi_pool adaptive": lambda f, b, *s: ops.deform_roi_pool(f, b, OFFSETS.expand(b.shape[0], -1, -1, -1), *s),
    "deform_ps_roi_pool": lambda f, b, *sizes: ops.deform_ps_roi_pool(
        f, b, OFFSETS.expand(b.shape[0], -1, -1, -1), *sizes
    ),
    "roi_align_rotated": lambda f, b, *sizes: ops.roi_align_rotated(f, turned(b), *sizes, 2),
    "spp": lambda f, b, size, scale: ops.spp(f, b, (1, 3), scale),
    "cells of continuous bins, max": partial(ops.pool, bins="continuous", sampling="cells", reduction="max"),
    "position-sensitive cells, max": partial(
        ops.pool, bins="rfcn", sampling="cells", channels="position_sensitive", reduction="max"
    ),
    "sum": partial(ops.pool, sampling="integral", reduction="sum"),
    "Lp": partial(ops.pool, sampling_ratio=2, reduction=ops.reductions.Lp(3.0)),
    "softmax": partial(ops.pool, sampling="cells", reduction=ops.reductions.Softmax(2.0)),
}


QUICK = ("roi_pool", "roi_align", "ps_roi_pool", "pr_roi_pool", "deform_roi_pool", "roi_align max adaptive", "spp")
"""Each form that programs have, once; an export takes seconds."""


def turned(boxes):
    """Upright boxes (K, 5) as rotated ones (K, 6), at 30 degrees."""
    low, high = boxes[:, 1:3], boxes[:, 3:]
    return torch.cat([boxes[:, :1], (low + high) / 2, high - low, torch.full_like(boxes[:, :1], 30)], 1)


class Operator(torch.nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, features, boxes):
        return self.operator(features, boxes, SHAPE, 0.25)


def session_of(program, path):
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


def run(session, *inputs):
    names = [argument.name for argument in session.get_inputs()]
    (output,) = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
    return torch.from_numpy(output)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OPERATORS]
)
def test_onnx_runtime_gives_what_the_operator_does(name: str, tmp_path) -> None:
    """For numbers of RoIs and images and sizes of maps that the program was not traced with."""
    torch.manual_seed(0)
    module = Operator(OPERATORS[name])
    varies = torch.export.Dim.DYNAMIC
    example = torch.randn(2, CHANNELS, 8, 10), random_boxes(20, (32, 40), 2, seed=0)
    program = onnx.export(module, example, dynamic_shapes=({0: varies, 2: varies, 3: varies}, {0: varies}))
    session = session_of(program, tmp_path / "operator.onnx")
    for count, images, size in ((333, 3, (13, 11)), (1, 1, (13, 11)), (0, 2, (5, 17))):
        features = torch.randn(images, CHANNELS, *size)
        boxes = random_boxes(count, (4 * size[0], 4 * size[1]), images, seed=count)
        expected = module(features, boxes)
        got = run(session, features, boxes)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


class Pooled(torch.nn.Module):
    def __init__(self, pooler):
        super().__init__()
        self.pooler = pooler

    def forward(self, fine, coarse, boxes):
        return self.pooler({"0": fine, "1": coarse}, [boxes], [(128, 160)])


@pytest.mark.parametrize("name", ["roi_pool", "pr_roi_pool"])
def test_roi_poolers_take_the_levels_of_a_pyramid(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    module = Pooled(RoIPooler(["0", "1"], SHAPE, OPERATORS[name], canonical_scale=50))
    maps = torch.randn(1, 3, 32, 40), torch.randn(1, 3, 16, 20)
    boxes = random_boxes(333, (128, 160), 1, seed=1)[:, 1:]
    program = onnx.export(module, (*maps, boxes), dynamic_shapes=({}, {}, {0: torch.export.Dim.DYNAMIC}))
    session = session_of(program, tmp_path / "pooler.onnx")
    for count in (333, 1, 0):
        got, expected = run(session, *maps, boxes[:count]), module(*maps, boxes[:count])
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
