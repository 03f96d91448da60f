"""Losses of the second stage against torchvision's, in both modes, and batches with nothing in them."""

import functools

import pytest
import torch
import torch.nn.functional as F
from detector_cases import MODELS, composed
from test_matrix import POOLERS, SHARED
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from detpool import ops
from detpool.detection import ProposalNetwork, TwoStageHeads, faster_rcnn_fpn
from detpool.detection.assignment import BoxCoder
from detpool.detection.backbones import SmallCNN
from detpool.detection.box_losses import roi_losses
from detpool.detection.roi_heads import BOX_REG_WEIGHTS
from detpool.poolers import RoIPooler
from detpool.training.runs import build_module

RPN = functools.partial(ProposalNetwork, anchor_sizes=[[16], [32], [64], [128], [256]])


def build(**arguments):
    torch.manual_seed(0)
    pooler = functools.partial(RoIPooler, output_size=7, operator=functools.partial(ops.roi_align, sampling_ratio=2))
    arguments = {"rpn": RPN, "fpn_channels": 8, "mask_pooler": pooler, "mask_channels": 8, **arguments}
    return faster_rcnn_fpn(3, SmallCNN((8, 8, 8, 8)), pooler, **arguments)


def batch():
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 96, 96, generator=generator) for _ in range(2)]
    boxes = [torch.tensor([[10.0, 12, 50, 60], [40, 40, 90, 90]]), torch.tensor([[5.0, 5, 30, 80]])]
    targets = []
    for box in boxes:
        masks = torch.zeros(len(box), 96, 96, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, box.int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        targets.append({"boxes": box, "labels": torch.arange(1, len(box) + 1), "masks": masks})
    return images, targets


def random_boxes(generator, *shape):
    corner = torch.rand(*shape, 2, generator=generator) * 60
    return torch.cat([corner, corner + 8 + torch.rand(*shape, 2, generator=generator) * 28], -1)


def pyramid(generator):
    sides = {"0": 24, "1": 12, "2": 6, "3": 3}
    return {name: torch.randn(2, 8, side, side, generator=generator) for name, side in sides.items()}


def test_losses_are_torchvisions():
    ours = build().train()
    theirs = RoIHeads(
        ours.roi_heads.box_roi_pool,
        ours.roi_heads.box_head,
        ours.roi_heads.box_predictor,
        0.5,
        0.5,
        512,
        0.25,
        BOX_REG_WEIGHTS,
        0.05,
        0.5,
        100,
        ours.roi_heads.mask_roi_pool,
        ours.roi_heads.mask_head,
        ours.roi_heads.mask_predictor,
    ).train()
    _, targets = batch()
    generator = torch.Generator().manual_seed(2)
    features = pyramid(generator)
    corner = torch.rand(2, 600, 2, generator=generator) * 60
    proposals = [torch.cat([c, c + 8 + torch.rand(600, 2, generator=generator) * 28], 1) for c in corner]
    arguments = (features, proposals, [(96, 96), (96, 96)], targets)
    found = []
    for heads in (ours.roi_heads, theirs):
        torch.manual_seed(3)  # both draw the same proposals
        found.append(heads(*arguments)[1])
    assert found[0].keys() == found[1].keys() == {"loss_classifier", "loss_box_reg", "loss_mask"}
    for name, loss in found[0].items():
        torch.testing.assert_close(loss, found[1][name], atol=1e-6, rtol=1e-5)


def test_mean_of_the_losses_of_rois_is_torchvisions_loss():
    generator = torch.Generator().manual_seed(0)
    logits, regression = torch.randn(20, 4, generator=generator), torch.randn(20, 16, generator=generator)
    labels, (boxes, objects) = torch.randint(4, (20,), generator=generator), random_boxes(generator, 2, 20)
    coder = BoxCoder(BOX_REG_WEIGHTS)
    for mine, reference in zip(
        roi_losses(logits, regression, labels, boxes, objects, coder),
        fastrcnn_loss(logits, regression, [labels], [coder.encode_single(objects, boxes)]),
        strict=True,
    ):
        assert mine.shape == (20,)
        torch.testing.assert_close(mine.mean(), reference)


def test_losses_in_evaluation_are_those_of_training_and_change_nothing():
    model = build(
        rpn=functools.partial(RPN, batch_size_per_image=1_000_000),
        roi_heads=functools.partial(TwoStageHeads, batch_size_per_image=10_000, positive_fraction=1.0),
    )
    # With everything in the batch nothing is drawn; without batch normalisation both modes compute the same, but for
    # the number of proposals.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    model.rpn._pre_nms_top_n["testing"] = model.rpn._pre_nms_top_n["training"]
    model.rpn._post_nms_top_n["testing"] = model.rpn._post_nms_top_n["training"]
    images, targets = batch()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        predictions, evaluated = model.evaluate(images, targets)
        assert not model.training
        model.rpn.train()
        model.roi_heads.train()
        trained = model.evaluate(images, targets)[1]
    assert len(predictions) == 2
    assert "mask_probabilities" in predictions[0]
    assert evaluated.keys() == trained.keys()
    for name, loss in evaluated.items():
        torch.testing.assert_close(loss, trained[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hard_examples_are_those_of_the_largest_losses():
    hard = functools.partial(TwoStageHeads, hard_examples=True, batch_size_per_image=5)
    heads = build(roi_heads=hard, mask_pooler=None).train().roi_heads
    generator = torch.Generator().manual_seed(4)
    features = pyramid(generator)
    corner = torch.rand(2, 30, 2, generator=generator) * 60
    proposals = [torch.cat([c, c + 20], 1) for c in corner]
    targets = batch()[1]
    sizes, boxes, classes = [(96, 96)] * 2, [t["boxes"] for t in targets], [t["labels"] for t in targets]
    losses = heads.losses(features, proposals, sizes, targets)
    with_objects = [torch.cat(pair) for pair in zip(proposals, boxes, strict=True)]
    matched, labels = heads.assign_targets_to_proposals(with_objects, boxes, classes)
    labels = torch.cat(labels)
    logits, regression = heads.classify(features, with_objects, sizes)
    deltas = torch.cat(heads.box_coder.encode([b[m] for b, m in zip(boxes, matched, strict=True)], with_objects))
    total = F.cross_entropy(logits, labels, reduction="none")
    for row in torch.where(labels > 0)[0]:
        mine = regression[row, 4 * labels[row] : 4 * labels[row] + 4]
        total[row] += F.smooth_l1_loss(mine, deltas[row], beta=1 / 9, reduction="sum")
    expected = total.sort(descending=True).values[:10].mean()
    torch.testing.assert_close(losses["loss_classifier"] + losses["loss_box_reg"], expected)


def first_pooler(model):
    return POOLERS.get(model, SHARED)[0]


@pytest.mark.parametrize("model", MODELS)
def test_batches_without_objects_or_proposals_train(model):
    """Finite losses, and a gradient, if only of zeros, for every parameter, which DDP insists on."""
    config = composed(model, first_pooler(model), [])
    config.class_names = list("abcdef")
    torch.manual_seed(0)
    module = build_module(config)
    for objects, proposals in ((0, 2), (1, 0), (0, 0)):
        if not proposals and hasattr(module.model.rpn, "score_thresh"):
            module.model.rpn.score_thresh = 2.0
        target = {
            "boxes": torch.tensor([[5.0, 5, 40, 50]])[:objects],
            "labels": torch.ones(objects, dtype=torch.int64),
            "masks": torch.ones(objects, 64, 64, dtype=torch.uint8),
            "proposals": torch.tensor([[3.0, 3, 30, 30], [9, 9, 20, 50]])[:proposals],
        }
        module.train().zero_grad(set_to_none=True)
        losses = module.model([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], [target, target])
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        sum(losses.values()).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        module.eval()
        with torch.no_grad():
            predictions, losses = module.model.evaluate([torch.rand(3, 64, 64)], [target])
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        assert proposals or len(predictions[0]["boxes"]) == 0


@pytest.mark.parametrize("model", ["faster_rcnn", "rfcn", "iou_net", "cascade_rcnn"])
def test_boxes_and_scores_keep_float32_in_mixed_precision(model):
    """bfloat16 has 8 bits: boxes beyond pixel 512 would be multiples of 4, objects' boxes in the losses too."""
    config = composed(
        model, first_pooler(model), ["model.roi_heads.score_thresh=0.0", "model.rpn.pre_nms_top_n_test=50"]
    )
    config.class_names = list("abcdef")
    torch.manual_seed(0)
    detector = build_module(config).model.eval()
    proposals = []
    detector.rpn.register_forward_hook(lambda _, __, result: proposals.extend(result[0]))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (found,) = detector([torch.rand(3, 64, 640)])
    for name, values in {"proposals": proposals[0], **{key: found[key] for key in ("boxes", "scores")}}.items():
        assert values.dtype == torch.float32, name
        assert len(values) > 0, name
        # Clipped sides are round numbers, which any precision has.
        assert (values != values.bfloat16()).float().mean() > 0.3, name
