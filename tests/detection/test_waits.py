"""How often a training step waits for a GPU, counted on a CPU; and that nothing else came of waiting less."""

from collections import Counter

import pytest
import torch
from detector_cases import batches, composed
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms

from detpool.detection import ProposalNetwork, proposals
from detpool.detection.suppression import suppress_at_once
from detpool.training.divergence import LossCheck
from detpool.training.runs import build_data, build_module

# Operations whose result the host needs, or the size of whose result it does.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}
WAITS = {f"aten::{name}" for name in WAITS} | {"torchvision::nms"}


def count_waits(function, monkeypatch):
    asked = Counter()
    for name in ("tolist", "cpu"):  # which nothing records on a CPU
        original = getattr(torch.Tensor, name)

        def counting(*args, name=name, original=original):
            asked[name] += 1
            return original(*args)

        monkeypatch.setattr(torch.Tensor, name, counting)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        function()
    monkeypatch.undo()
    return asked + Counter(event.name for event in record.events() if event.name in WAITS)


@pytest.mark.parametrize(("model", "per_image"), [("faster_rcnn", 1), ("mask_rcnn", 2), ("cascade_rcnn", 1)])
def test_a_training_step_waits_four_times_and_at_most_twice_for_each_image(model, per_image, monkeypatch):
    config = composed(model, "roi_align", ["data.batch_size=4"])
    torch.manual_seed(0)
    data = build_data(config)
    config.class_names = list(data.class_names)
    detector = build_module(config).train().model
    images, targets = next(batches(data.train_dataloader(), given=False))
    check = LossCheck()

    def step():
        check.check()
        losses = detector(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        check.note(loss, losses, 0, 0, [])
        loss.backward()

    step()
    # As on a GPU: torchvision's function, used on a CPU, waits for each group of boxes.
    monkeypatch.setattr(proposals, "suppress", suppress_at_once)
    waits = count_waits(step, monkeypatch)
    assert waits["torchvision::nms"] == len(images) == 4
    assert waits.total() <= 4 + per_image * len(images), waits


def test_masks_of_predictions_wait_for_no_detection(monkeypatch):
    found = []
    for most in (2, 20):
        config = composed("mask_rcnn", "roi_align", [f"model.roi_heads.detections_per_img={most}"])
        config.model.roi_heads.score_thresh = 0.0
        torch.manual_seed(0)
        data = build_data(config)
        config.class_names = list(data.class_names)
        module = build_module(config).eval()
        module.prepare_evaluation(data.val_dataset)
        images, targets = next(batches(data.val_dataloader(), given=False))

        def evaluate(module=module, images=images, targets=targets):
            with torch.no_grad():
                predictions, _ = module.model.evaluate(images, targets)
            module.evaluator.update(predictions, targets, [image.shape[-2:] for image in images])

        monkeypatch.setattr(proposals, "suppress", suppress_at_once)
        waits = count_waits(evaluate, monkeypatch)
        assert len(module.evaluator.results()) == most * len(images)
        assert all(module.evaluator.results().segmentations)
        found.append(waits)
    assert found[0] == found[1]


def random_boxes(count, generator, reach=60.0):
    corners = torch.rand(count, 2, generator=generator) * reach
    return torch.cat([corners, corners + 4 + 30 * torch.rand(count, 2, generator=generator)], 1)


def test_proposals_and_losses_are_torchvisions():
    generator = torch.Generator().manual_seed(0)
    network = ProposalNetwork(
        ["0", "1"], 4, [[8], [16]], post_nms_top_n_train=50, batch_size_per_image=40, score_thresh=0.45
    ).train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    features = {"0": torch.randn(3, 4, 16, 16, generator=generator), "1": torch.randn(3, 4, 8, 8, generator=generator)}
    images = ImageList(torch.zeros(3, 3, 64, 64), [(64, 64), (60, 64), (64, 50)])
    targets = [{"boxes": random_boxes(count, generator, 30)} for count in (3, 0, 8)]
    found = []
    for forward in (ProposalNetwork.forward, RegionProposalNetwork.forward):
        torch.manual_seed(1)  # both draw the same anchors
        found.append(forward(network, images, features, targets))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(ours, theirs)
        assert 0 < len(ours) <= 50
    torch.testing.assert_close(found[0][1], found[1][1])


def test_suppression_of_groups_at_once():
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(300, generator) - 20
    scores, groups = torch.rand(300, generator=generator), torch.randint(4, (300,), generator=generator)
    kept = suppress_at_once(boxes, scores, groups, 0.5)
    assert kept.tolist() == batched_nms(boxes, scores, groups, 0.5).tolist()
    assert 100 < len(kept) < 290
    assert len(suppress_at_once(boxes[:0], scores[:0], groups[:0], 0.5)) == 0


def test_only_the_best_boxes_go_to_suppression():
    config = composed("faster_rcnn", "roi_align", ["model.roi_heads.score_thresh=0.01"])
    config.class_names = ["a", "b", "c"]
    heads = build_module(config).model.roi_heads
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(40, 4, generator=generator), 0.1 * torch.randn(40, 16, generator=generator)
    arguments = (logits, deltas, [random_boxes(25, generator), random_boxes(15, generator)], [(64, 64), (50, 60)])

    heads.classify = lambda *_: (logits, deltas)

    def detect():
        found = heads.detect({}, *arguments[2:])
        return [[detection[key] for detection in found] for key in ("boxes", "scores", "labels")]

    def assert_is_torchvisions():
        for ours, theirs in zip(detect(), RoIHeads.postprocess_detections(heads, *arguments), strict=True):
            for mine, reference in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, reference)

    assert_is_torchvisions()
    heads.pre_nms_top_n = 7
    limited = detect()[1]
    scores = [part[:, 1:].flatten().sort(descending=True).values for part in logits.softmax(1).split([25, 15])]
    for found, best in zip(limited, scores, strict=True):
        assert 0 < len(found) <= 7
        assert set(found.tolist()) <= set(best[:7].tolist())
    # With a threshold that as many boxes pass torchvision finds the same.
    heads.pre_nms_top_n, heads.score_thresh = 10_000, scores[0][7].item()
    unlimited = detect()[1]
    torch.testing.assert_close(limited[0], unlimited[0])
    assert_is_torchvisions()
