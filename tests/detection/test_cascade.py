"""Cascade R-CNN: with one stage Faster R-CNN, with three what its paper says, box by box, and what they bring."""

import pytest
import torch
import torch.nn.functional as F
from detector_cases import batches, composed
from torchvision.ops import box_iou, clip_boxes_to_image

from detpool.detection import CascadeHeads
from detpool.detection.assignment import BoxCoder
from detpool.poolers import RoIPooler
from detpool.training.runs import build_data, build_module

ONE_STAGE = ["model.roi_heads.stage_ious=[0.5]", "model.roi_heads.stage_reg_weights=[[10,10,5,5]]"]
WEIGHTS = [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]


def build(model, *overrides):
    config = composed(model, "roi_align", ["model.roi_heads.score_thresh=0.01", *overrides])
    torch.manual_seed(0)
    data = build_data(config)
    config.class_names = list(data.class_names)
    return build_module(config).model, data


@pytest.mark.parametrize("masks", ["", "mask_"])
def test_one_stage_is_faster_rcnn_bit_for_bit(masks):
    found = []
    for model, overrides in (
        (f"{masks or 'faster_'}rcnn", ["model.class_agnostic=true"]),
        (f"cascade_{masks}rcnn", ONE_STAGE),
    ):
        detector, data = build(model, *overrides)
        images, targets = next(batches(data.train_dataloader(), given=False))
        torch.manual_seed(1)
        losses = detector.train()(images, targets)
        sum(losses.values()).backward()
        gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
        with torch.no_grad():
            detections = detector.eval()(images)
        found.append((losses, gradients, detections))
    (losses, gradients, detections), others = found[0], found[1]
    assert losses.keys() == others[0].keys()
    assert gradients.keys() == others[1].keys()
    assert all(torch.equal(loss, others[0][name]) for name, loss in losses.items())
    assert all(torch.equal(gradient, others[1][name]) for name, gradient in gradients.items())
    for mine, other in zip(detections, others[2], strict=True):
        assert len(mine["boxes"]) > 0
        assert mine.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in mine.items())


def stages_of(heads):
    return [(heads.box_roi_pool, heads.box_head, heads.box_predictor), *heads.later_stages]


def setting():
    detector, data = build("cascade_rcnn", "model.roi_heads.batch_size_per_image=1000000")
    _, targets = next(batches(data.train_dataloader(), given=False))
    generator = torch.Generator().manual_seed(2)
    sides = {"0": 16, "1": 8, "2": 4, "3": 2}
    features = {name: torch.randn(2, 8, n, n, generator=generator).requires_grad_() for name, n in sides.items()}
    corner = torch.rand(2, 40, 2, generator=generator) * 40
    proposals = [torch.cat([c, c + 4 + 20 * torch.rand(40, 2, generator=generator)], 1) for c in corner]
    # All of them are taken, and some of them are good: nothing is left to chance.
    heads = detector.roi_heads
    heads.fg_bg_sampler.positive_fraction = 1.0
    proposals = [
        torch.cat([p, *[t["boxes"] + d for d in (-1.5, 1.0)]]) for p, t in zip(proposals, targets, strict=True)
    ]
    # Far from the boxes that they start with, so that the stages differ.
    for _, _, predictor in stages_of(heads):
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.5, generator=generator)
    return heads, features, proposals, targets


def plain_stages(heads, features, boxes, shapes):
    """Logits, deltas and boxes of each stage, of all images one after another."""
    image = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor([len(box) for box in boxes]))
    for (pooler, head, predictor), weights in zip(stages_of(heads), WEIGHTS, strict=True):
        logits, deltas = predictor(head(pooler(features, boxes, shapes)))
        yield logits, deltas[:, :4], boxes
        moved = BoxCoder(weights).decode_single(deltas[:, :4].detach(), torch.cat(boxes))
        boxes = [clip_boxes_to_image(moved[image == number], shape) for number, shape in enumerate(shapes)]


def test_losses_of_stages():
    heads, features, proposals, targets = setting()
    shapes = [(64, 64), (64, 64)]
    losses = heads.train().losses(features, proposals, shapes, targets)
    first = [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, targets, strict=True)]
    pooled, positives = [], []
    for number, (logits, deltas, boxes) in enumerate(plain_stages(heads, features, first, shapes)):
        ious = [box_iou(box, target["boxes"]).max(1) for box, target in zip(boxes, targets, strict=True)]
        objects = torch.cat([target["boxes"][iou.indices] for iou, target in zip(ious, targets, strict=True)])
        labels = torch.cat([target["labels"][iou.indices] for iou, target in zip(ious, targets, strict=True)])
        positive = torch.cat([iou.values for iou in ious]) >= (0.5, 0.6, 0.7)[number]
        wanted = BoxCoder(WEIGHTS[number]).encode_single(objects, torch.cat(boxes))
        box_loss = F.smooth_l1_loss(deltas[positive], wanted[positive], beta=1 / 9, reduction="sum") / len(labels)
        suffix = f"_{number + 1}" if number else ""
        torch.testing.assert_close(losses[f"loss_classifier{suffix}"], F.cross_entropy(logits, labels * positive))
        torch.testing.assert_close(losses[f"loss_box_reg{suffix}"], box_loss)
        pooled.append(F.cross_entropy(logits, labels * positive) + box_loss)
        positives.append(int(positive.sum()))
    assert len(losses) == 6
    assert min(positives) > 0
    assert len(set(positives)) == 3  # each stage has labels of its own

    # Heads have the gradients of the sum of losses, feature maps a third of theirs.
    parameters = [parameter for stage in stages_of(heads) for module in stage for parameter in module.parameters()]
    maps = list(features.values())
    mine = torch.autograd.grad(sum(losses.values()), [*parameters, *maps])
    theirs = torch.autograd.grad(sum(pooled), [*parameters, *maps])
    scale = [1] * len(parameters) + [3] * len(maps)
    assert all(gradient.any() for gradient in mine[: len(parameters) + 1])  # no box is of a coarser map
    for one, other, factor in zip(mine, theirs, scale, strict=True):
        torch.testing.assert_close(factor * one, other, rtol=1e-4, atol=1e-6)


def test_detections_have_mean_scores_and_the_last_boxes():
    heads, features, proposals, _ = setting()
    shapes = [(64, 64), (64, 60)]
    with torch.no_grad():
        scores, boxes = heads.eval().score_boxes(features, proposals, shapes)
        stages = list(plain_stages(heads, features, proposals, shapes))
    torch.testing.assert_close(scores, sum(logits.softmax(-1) for logits, _, _ in stages) / 3)
    _, deltas, last = stages[-1]
    expected = BoxCoder(WEIGHTS[-1]).decode_single(deltas, torch.cat(last))
    torch.testing.assert_close(boxes, expected[:, None].expand_as(boxes))
    assert not torch.allclose(torch.cat(last), torch.cat(proposals), atol=1.0)


def test_every_stage_may_have_a_pooler_of_its_own():
    detector, _ = build("cascade_rcnn", "stage3_pooler=roi_pool", "stage3_pooler.output_size=5")
    poolers = [pooler for pooler, _, _ in stages_of(detector.roi_heads)]
    assert all(isinstance(pooler, RoIPooler) for pooler in poolers)
    assert [pooler.output_size for pooler in poolers] == [(7, 7), (7, 7), (5, 5)]
    assert len({id(pooler) for pooler in poolers}) == 3


def test_classes_may_have_boxes_of_their_own(monkeypatch):
    """The box of the best class goes on."""
    heads = build("cascade_rcnn", "model.class_agnostic=false")[0].roi_heads.eval()
    assert isinstance(heads, CascadeHeads)
    logits = torch.tensor([[9.0, 0, 1], [0, 2, 1]])
    deltas = torch.zeros(2, 12)
    deltas[0, 8], deltas[1, 4], deltas[:, 0] = 5.0, -5.0, 99.0  # in x, of class 2, of class 1, and of background
    monkeypatch.setattr(heads, "classify", lambda *_: (logits, deltas))
    boxes = [torch.tensor([[10.0, 10, 20, 20], [30, 30, 50, 50]])]
    second = list(heads.run_stages({}, boxes, [(64, 64)]))[1][2][0]
    torch.testing.assert_close(second, torch.tensor([[15.0, 10, 25, 20], [20, 30, 40, 50]]))
