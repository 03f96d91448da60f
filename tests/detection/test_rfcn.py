"""R-FCN: every bin reads its own group of channels, in the order the score maps are made in."""

import functools

import pytest
import torch

from detpool import ops
from detpool.detection import ProposalNetwork, rfcn
from detpool.detection.backbones import SmallCNN
from detpool.poolers import RoIPooler

CLASSES = 3
OUTPUTS = CLASSES + 1 + 4
BOX = torch.tensor([[16.0, 16.0, 111.0, 111.0]])
OPERATORS = {
    "ps_roi_pool": functools.partial(ops.ps_roi_pool, convention="rfcn"),
    "ps_roi_align": functools.partial(ops.ps_roi_align, sampling_ratio=2),
    "ps_pr_roi_pool": functools.partial(ops.pr_roi_pool, position_sensitive=True),
}


RPN = functools.partial(ProposalNetwork, anchor_sizes=[[32]])


def build(operator, k, **arguments):
    torch.manual_seed(0)
    pooler = functools.partial(RoIPooler, output_size=k, operator=operator)
    body = SmallCNN((4, 4, 8, 8), output_stride=16)
    return rfcn(CLASSES, body, pooler, reduced_channels=8, rpn=RPN, **arguments).eval()


def score_maps(k, order):
    """Maps that are one in the part of the image where their bin lies, times a value of their class."""
    maps = torch.zeros(1, OUTPUTS * k * k, 8, 8)
    values = torch.arange(1.0, OUTPUTS + 1)
    for c in range(OUTPUTS):
        for i in range(k):
            for j in range(k):
                channel = (c * k + i) * k + j if order == "class first" else (i * k + j) * OUTPUTS + c
                # Cells 1 to 6 of 8 are the box; a bin's part of them, and nothing elsewhere.
                rows, columns = (slice(1 + 6 * n // k, 1 + 6 * (n + 1) // k) for n in (i, j))
                maps[0, channel, rows, columns] = values[c]
    return maps, values


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_each_bin_reads_its_own_channels(operator, k):
    heads = build(OPERATORS[operator], k).roi_heads
    maps, values = score_maps(k, "class first")
    logits, deltas = heads.classify({"0": maps}, [BOX], [(128, 128)])
    votes = torch.cat([logits, deltas[:, :4]], 1)[0]
    if operator == "ps_roi_pool":
        # Rounded bins are exactly the cells that the maps were drawn in.
        torch.testing.assert_close(votes, values)
    else:
        # Continuous bins reach half a cell over their part's edges, where the map is zero: a factor, the same for all.
        torch.testing.assert_close(votes / votes[0], values, atol=1e-4, rtol=1e-4)
        assert votes[0] > 0.4
    assert torch.equal(deltas, deltas[:, :4].repeat(1, CLASSES + 1))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_wrong_channel_order_does_not_pass_as_the_right_one(operator):
    """Ports that put the bins before the classes fail to train; the votes show it at once."""
    heads = build(OPERATORS[operator], 3).roi_heads
    right, wrong = (
        heads.classify({"0": score_maps(3, order)[0]}, [BOX], [(128, 128)])[0]
        for order in ("class first", "bins first")
    )
    assert (right - wrong).abs().max() > 0.3 * right.abs().max()


def test_a_bin_is_the_gradient_of_its_channels_alone():
    """Through the detector's own 1 x 1 convolution: output c of bin (i, j) comes from filter (c k + i) k + j."""
    k = 3
    model = build(OPERATORS["ps_roi_pool"], k)
    convolution = model.backbone.neck[-1]
    features = model.backbone(torch.rand(1, 3, 128, 128))
    pooled = model.roi_heads.box_roi_pool(features, [BOX], [(128, 128)])
    assert pooled.shape == (1, OUTPUTS, k, k)
    for c, i, j in [(0, 0, 0), (1, 0, 2), (2, 1, 0), (7, 2, 1)]:
        (slope,) = torch.autograd.grad(pooled[0, c, i, j], convolution.bias, retain_graph=True)
        assert torch.where(slope != 0)[0].tolist() == [(c * k + i) * k + j]


def test_proposals_come_from_the_map_before_the_last():
    model = build(OPERATORS["ps_roi_pool"], 3)
    assert model.rpn.map_names == ["rpn"]
    body_maps = model.backbone.body(torch.ones(1, 3, 64, 64))
    assert torch.equal(model.backbone(torch.ones(1, 3, 64, 64))["rpn"], body_maps[-2])
    shared = build(OPERATORS["ps_roi_pool"], 3, separate_rpn=False)
    assert torch.equal(
        shared.backbone(torch.ones(1, 3, 64, 64))["rpn"], shared.backbone.body(torch.ones(1, 3, 64, 64))[-1]
    )
