"""Detectors as ONNX programs, run by ONNX Runtime, against the detectors themselves."""

import numpy as np
import pytest
import torch
from detector_cases import CHECKED, composed
from hydra.utils import instantiate

from detpool.detection import GivenProposals
from detpool.errors import ConfigError
from detpool.training.runs import build_module

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

from detpool.detection.onnx import export_detector  # noqa: E402
from detpool.ops.onnx import export  # noqa: E402


def detector(model, pooler=None):
    torch.manual_seed(0)
    config = composed(model, pooler, [])
    config.class_names = ["a", "b", "c"]
    return build_module(config).model.eval()


@pytest.mark.parametrize(
    ("model", "pooler"),
    [
        ("faster_rcnn", "pr_roi_pool"),
        pytest.param("cascade_rcnn", "roi_align", marks=pytest.mark.slow),
        pytest.param("mask_rcnn", "roi_pool", marks=pytest.mark.slow),
        pytest.param("faster_rcnn_c4", None, marks=pytest.mark.slow),
    ],
)
def test_detections_in_onnx_runtime_are_the_detectors(model, pooler, tmp_path) -> None:
    built = detector(model, pooler)
    export_detector(built, (64, 96)).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    for image in (torch.rand(3, 64, 96), torch.zeros(3, 64, 96)):
        with torch.no_grad():
            ((expected,), _) = built.evaluate([image])
        assert list(expected) == names
        assert len(expected["boxes"]) > 0
        for name, got in zip(names, session.run(None, {"image": image.numpy()}), strict=True):
            # of boxes in pixels, whose float32 has steps of 8e-6 at 96
            np.testing.assert_allclose(got, expected[name].numpy(), atol=5e-5, rtol=1e-5)


def test_a_detector_without_detections_is_one_in_onnx_runtime_too(tmp_path) -> None:
    built = detector("faster_rcnn_c4")
    built.rpn.score_thresh = 1.1  # no proposal
    export_detector(built, (64, 96)).save(tmp_path / "model.onnx")
    boxes, labels, scores = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(
        None, {"image": np.zeros((3, 64, 96), np.float32)}
    )
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))


class HeadsOfSome(torch.nn.Module):
    """Box heads, each of the RoIs of a positive score."""

    def __init__(self, names, shape) -> None:
        super().__init__()
        factories = [instantiate(CHECKED.compose([f"head_pool={name}", *extra]).head_pool) for name, *extra in names]
        self.heads = torch.nn.ModuleList(factory(shape, channels=6) for factory in factories)

    def forward(self, rois, scores):
        some = rois[(scores > 0).nonzero()[:, 0]]
        return [head(some) for head in self.heads]


@pytest.mark.parametrize(
    "names",
    [
        [["token_weighted"], ["conv_fc", "head_pool.conv_channels=8", "head_pool.groups=4"], ["adaptive_max"], ["gem"]],
        pytest.param([["token_attention"], ["spatial_pyramid"], ["token_cls"]], marks=pytest.mark.slow),
    ],
)
def test_heads_in_onnx_runtime_take_any_number_of_rois(names, tmp_path) -> None:
    torch.manual_seed(0)
    module, rois = HeadsOfSome(names, (8, 5, 4)).eval(), torch.randn(5, 8, 5, 4)
    scores = torch.tensor([1.0, -1, 1, 1, -1])
    export(module, (rois, scores), input_names=["rois", "scores"]).save(tmp_path / "heads.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "heads.onnx")
    for chosen in (scores, -torch.ones(5), torch.ones(5)):
        with torch.no_grad():
            expected = module(rois, chosen)
        found = session.run(None, {"rois": rois.numpy(), "scores": chosen.numpy()})
        for head, got, wanted in zip(module.heads, found, expected, strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5, err_msg=type(head).__name__)


def test_what_has_no_onnx_form_says_so() -> None:
    with pytest.raises(ConfigError, match="IoU head has no ONNX form"):
        export_detector(detector("iou_net"), (64, 96))
    built = detector("faster_rcnn")
    built.roi_heads.nms = "linear"
    with pytest.raises(ConfigError, match="model.roi_heads.nms=linear has no ONNX form"):
        export_detector(built, (64, 96))
    built.rpn = GivenProposals()
    with pytest.raises(ConfigError, match="proposals of GivenProposals has no ONNX form"):
        export_detector(built, (64, 96))
