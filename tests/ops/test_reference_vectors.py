"""Against numbers of another library, also where torchvision has no such operator (see vectors/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detpool import ops

# float32 numbers of order one, added up in another order: outputs are means of up to 16 points, gradients sums of tens.
OUTPUT, GRADIENT = {"atol": 1e-5, "rtol": 1e-5}, {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "vectors/mxnet_1_9_1.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_shared_channels(vectors: dict[str, Tensor], backend: str) -> None:
    features, scale = vectors["features"][:, :1], float(vectors["spatial_scale"])
    arguments = (features, vectors["rois"], (7, 5), scale)
    assert torch.equal(ops.roi_pool(*arguments, backend=backend), vectors["roi_pool__output"])
    aligned = ops.roi_align(*arguments, 2, True, backend=backend)
    torch.testing.assert_close(aligned, vectors["roi_align__output"], **OUTPUT)
    legacy = ops.roi_align(*arguments, 3, False, backend=backend)
    torch.testing.assert_close(legacy, vectors["roi_align_legacy__output"], **OUTPUT)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["ps_roi_pool_rfcn", "deform_ps_roi_pool"])
def test_position_sensitive(vectors: dict[str, Tensor], name: str, backend: str) -> None:
    features, scale = vectors["features"].clone().requires_grad_(), float(vectors["spatial_scale"])
    if name == "ps_roi_pool_rfcn":
        got = ops.ps_roi_pool(features, vectors["rois"], 3, scale, convention="rfcn", backend=backend)
    else:
        got = ops.deform_ps_roi_pool(features, vectors["rois"], vectors["offsets"], 3, scale, backend=backend)
    torch.testing.assert_close(got, vectors[f"{name}__output"], **OUTPUT)
    got.backward(vectors[f"{name}__grad_output"])
    expected = vectors[f"{name}__grad_features"]
    torch.testing.assert_close(features.grad[:, :, : expected.shape[2]], expected, **GRADIENT)
