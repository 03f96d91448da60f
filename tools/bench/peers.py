"""Other implementations of the operators, each with the layout, types and threads that suit it.

A peer is a function of a case that returns its contender, or raises `Absent` with the reason. Models of OpenVINO and
ONNX Runtime hold one operator and are built in memory; they infer only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from .contenders import Absent, Case, Contender, Pool, Results, autograd_contender, detpool_pool, pyramid_pool

ROI_ALIGN, ROI_ALIGN_MAX, PS_ROI_POOL_RFCN = "roi_align", "roi_align:reduction=max", "ps_roi_pool:convention=rfcn"

Peer = Callable[[Case], Contender]


def torchvision_peer(case: Case) -> Contender:
    """torchvision's operators on contiguous features, and its `MultiScaleRoIAlign` on a pyramid.

    They want boxes of the dtype of the features; the cast of so few numbers costs nothing.

    In float16 and bfloat16 it computes in float32 and casts back, as its autocast rule does: its kernels would round
    the boxes as well.
    """
    pool, notes = _torchvision_pool(case), ["gradients of features only"] * case.box_gradients
    if case.dtype in (torch.float16, torch.bfloat16):
        single, notes = pool, [*notes, "computes in float32"]

        def pool(features: Sequence[Tensor], boxes: Any) -> Tensor:
            return single([f.float() for f in features], boxes).to(case.dtype)

    return autograd_contender(case, pool, torch.contiguous_format, box_gradients=False, note="; ".join(notes))


def _torchvision_pool(case: Case) -> Pool:
    workload, name = case.workload, case.operator.name
    if workload.is_pyramid:
        if name != "roi_align":
            raise Absent("pools a pyramid with roi_align only")
        pool = pyramid_pool(workload, partial(torchvision.ops.MultiScaleRoIAlign, sampling_ratio=case.sampling_ratio))
        return lambda features, boxes: pool(features, [b.to(features[0].dtype) for b in boxes])
    if name not in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"):
        raise Absent("has no such operator")
    operator = getattr(torchvision.ops, name)
    extra = {"sampling_ratio": case.sampling_ratio} if name.endswith("align") else {}
    size, scale = workload.output_size, 1 / workload.strides[0]
    return lambda features, rois: operator(features[0], rois.to(features[0].dtype), size, scale, **extra)


def compiled_peer(case: Case) -> Contender:
    """Our reference backend under `torch.compile`: what PyTorch makes of plain PyTorch."""
    operator = case.operator.bind(case.sampling_ratio, "reference")
    pool = detpool_pool(case.workload, torch.compile(operator))
    return autograd_contender(case, pool, torch.channels_last, case.box_gradients)


def openvino_peer(case: Case) -> Contender:
    """OpenVINO's CPU plugin; where it converts features to its blocked layout, that is part of its call."""
    features, rois = _inference_inputs(case)
    try:
        import openvino
        from openvino import opset13 as opset
    except ImportError:
        raise Absent("not installed (the extra `bench` holds it)") from None
    workload, name = case.workload, case.operator.name
    (height, width), scale = workload.output_size, 1 / workload.strides[0]
    feeds = [features, rois]
    if name in (ROI_ALIGN, ROI_ALIGN_MAX):
        feeds = [features, np.ascontiguousarray(rois[:, 1:]), rois[:, 0].astype(np.int32)]
    inputs = [opset.parameter(feed.shape, feed.dtype) for feed in feeds]
    if name in (ROI_ALIGN, ROI_ALIGN_MAX):
        mode = "max" if name == ROI_ALIGN_MAX else "avg"
        node = opset.roi_align(*inputs, height, width, case.sampling_ratio, scale, mode, "asymmetric")
    elif name == "roi_pool":
        node = opset.roi_pooling(*inputs, [height, width], scale, "max")
    elif name == PS_ROI_POOL_RFCN and height == width:
        node = opset.psroi_pooling(*inputs, workload.output_channels, height, scale, 1, 1, "average")
    else:
        raise Absent("has no such operator")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        # The calling thread would keep the core it was pinned to, and with it the calls of everybody else.
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(openvino.Model([node], inputs), "CPU", options).create_infer_request()
    for number, feed in enumerate(feeds):
        request.set_input_tensor(number, openvino.Tensor(feed))  # a copy, whose memory is its own
    output = request.get_output_tensor(0)

    def run() -> Results:
        request.infer()
        return {"output": [torch.from_numpy(output.data)]}

    return Contender(run, check=run)


def onnxruntime_peer(case: Case) -> Contender:
    """ONNX Runtime's CPU provider, operator set 16."""
    features, rois = _inference_inputs(case)
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError:
        raise Absent("not installed (the extra `bench` holds it)") from None
    workload, name = case.workload, case.operator.name
    (height, width), scale = workload.output_size, 1 / workload.strides[0]
    attributes: dict[str, Any]
    if name in (ROI_ALIGN, ROI_ALIGN_MAX):
        feeds = {"features": features, "rois": rois[:, 1:].copy(), "batch": rois[:, 0].astype(np.int64)}
        kind, attributes = "RoiAlign", {"output_height": height, "output_width": width}
        attributes |= {"mode": "max" if name == ROI_ALIGN_MAX else "avg", "sampling_ratio": case.sampling_ratio}
        attributes |= {"coordinate_transformation_mode": "output_half_pixel"}
    elif name == "roi_pool":
        feeds = {"features": features, "rois": rois}
        kind, attributes = "MaxRoiPool", {"pooled_shape": [height, width]}
    else:
        raise Absent("has no such operator")
    node = helper.make_node(kind, list(feeds), ["output"], spatial_scale=scale, **attributes)
    inputs = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(feed.dtype), feed.shape)
        for key, feed in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)]
    # The format's version belongs to the operator set: by default it is the newest, which older runtimes refuse.
    model = helper.make_model(
        helper.make_graph([node], name, inputs, outputs), opset_imports=[helper.make_opsetid("", 16)], ir_version=8
    )
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    # Idle workers would keep spinning through the calls of everybody else.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> Results:
        return {"output": [torch.from_numpy(session.run(None, feeds)[0])]}

    return Contender(run, check=run)


def _inference_inputs(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, C, H, W) and RoIs (K, 5) for those who only infer."""
    if case.device != "cpu":
        raise Absent("compared on CPUs only")
    if case.backward:
        raise Absent("has no backward pass")
    if case.workload.is_pyramid:
        raise Absent("pools from one map a call")
    if case.dtype != torch.float32:
        raise Absent("compared in float32 only")
    return case.workload.features[0].numpy(), case.workload.rois.numpy()


PEERS: dict[str, Peer] = {
    "torchvision": torchvision_peer,
    "openvino": openvino_peer,
    "onnxruntime": onnxruntime_peer,
    "compiled": compiled_peer,
}
DEFAULTS = {"cpu": ["torchvision", "openvino", "onnxruntime"], "cuda": ["torchvision", "compiled"]}
"""Peers of each device."""
