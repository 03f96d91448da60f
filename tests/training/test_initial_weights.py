"""Starting from a detector that was trained elsewhere: files of torchvision and detectron2, runs of other classes."""

import pickle
import re

import numpy as np
import pytest
import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from detpool.detection.detectron2_weights import read_detectron2_file
from detpool.errors import ConfigError, WeightsError
from detpool.training import runs
from detpool.training.initial_weights import COCO_LABELS, read_detector

RESNET = ["backbone=resnet18", "backbone.weights=null", "model.roi_heads.score_thresh=0.0", "data.size=64"]
AS_TORCHVISION = ["operator.aligned=false", "operator.sampling_ratio=2"]
SCORES, BOXES = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"


def build(compose_tiny, tmp_path, class_names, *overrides):
    config = compose_tiny(tmp_path / "run", *overrides, without=["model", "head_pool", "backbone", "pooler"])
    config.class_names = class_names
    return runs.build_module(config).model.eval()


def torchvision_detector(masks=False):
    """A detector of three classes with seeded random weights, whose normalization has statistics that matter."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d)
    kind = MaskRCNN if masks else FasterRCNN
    model = kind(body, num_classes=4, box_score_thresh=0.0, min_size=64, max_size=64)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("names", ["of today", "of 2019"])
def test_torchvisions_detectors_detect_the_same(compose_tiny, tmp_path, capsys, masks, names):
    theirs = torchvision_detector(masks)
    tensors = theirs.state_dict()
    if names == "of 2019":
        tensors = {
            re.sub(r"(rpn\.head\.conv)\.0\.0|(_blocks\.\d)\.0\.(?=w|b)", r"\1\2.", name).replace("..", "."): value
            for name, value in tensors.items()
        }
        tensors = {
            re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", name): value
            for name, value in tensors.items()
        }
        assert "rpn.head.conv.weight" in tensors
        assert "backbone.fpn.inner_blocks.0.weight" in tensors
    torch.save(tensors, tmp_path / "detector.pth")
    own = ["model=mask_rcnn", "data.masks=true"] if masks else ["model=faster_rcnn"]
    pools = ["pooler", "mask_pooler"] if masks else ["pooler"]
    poolers = [f"{pool}.{setting}" for pool in pools for setting in AS_TORCHVISION]
    ours = build(compose_tiny, tmp_path, list("abc"), *own, *RESNET, *poolers, f"model.weights={tmp_path}/detector.pth")
    printed = capsys.readouterr().out
    assert re.search(
        r"model\.weights=\S+/detector\.pth: (\d+) of \1 tensors; its classes are taken to be a, b, c, in this order\n",
        printed,
    ), printed
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (expected,), (found,) = theirs([image]), ours([image])
    assert len(expected["scores"]) > 20
    assert torch.equal(found["labels"], expected["labels"])
    # Sums of other order, through eighteen layers whose activations are of the order of 100.
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=1e-4)


def test_classes_are_taken_over_by_name(compose_tiny, tmp_path, capsys):
    """From a run of three classes to two, of which one is known: the other, and nothing else, begins anew."""
    classes = "data.classes=[circle,square,star]"
    runs.train(compose_tiny(tmp_path / "run", classes, "model=iou_net", "trainer.max_steps=2", without=["model"]))
    before = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    capsys.readouterr()
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        config = compose_tiny(tmp_path / "new", "model=iou_net", f"model.weights={path}", without=["model"])
        config.class_names = ["cross", "square"]
        torch.manual_seed(5)
        state = runs.build_module(config).model.state_dict()
        config.model.weights = None
        torch.manual_seed(5)
        fresh = runs.build_module(config).model.state_dict()
        (printed,) = [line for line in capsys.readouterr().out.splitlines() if "model.weights=" in line]
        assert "classes by name: square" in printed
        assert "anew" not in printed
        for name, rows in ((SCORES, 1), (BOXES, 4), ("roi_heads.iou_predictor", 1)):
            offset = 0 if "iou" in name else rows
            for kind in (".weight", ".bias"):
                old, new, untrained = before[f"model.{name}{kind}"], state[name + kind], fresh[name + kind]
                assert torch.equal(new[:offset], old[:offset])  # background
                assert torch.equal(new[offset : offset + rows], untrained[offset : offset + rows])  # cross
                square = old[offset + rows : offset + 2 * rows]
                assert torch.equal(new[offset + rows :], square)
        shared = [name for name in state if state[name].shape == before[f"model.{name}"].shape]
        assert len(shared) > 50
        assert all(torch.equal(state[name], before[f"model.{name}"]) for name in shared)


def test_layers_of_another_layout_are_named(compose_tiny, tmp_path, capsys):
    """R-FCN's scores and boxes share a layer; a detector without masks has nothing for a mask head."""
    tensors = torchvision_detector().state_dict()
    torch.save(tensors, tmp_path / "detector.pth")
    build(
        compose_tiny, tmp_path, list("abcde"), "model=mask_rcnn", "data.masks=true", *RESNET,
        f"model.weights={tmp_path}/detector.pth",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "initialized anew: roi_heads.box_predictor.cls_score, roi_heads.box_predictor.bbox_pred, " in printed
    assert "roi_heads.mask_head.0.0" in printed
    rfcn = ["model=rfcn", "pooler=ps_roi_pool", "backbone.output_stride=16"]
    torch.save(build(compose_tiny, tmp_path, list("abc"), *rfcn).state_dict(), tmp_path / "rfcn.pth")
    build(compose_tiny, tmp_path, list("abcde"), *rfcn, f"model.weights={tmp_path}/rfcn.pth")
    assert "initialized anew: backbone.neck.2\n" in capsys.readouterr().out
    # Without a detector's scores nothing is known of the classes of a file: as many are taken for the same.
    build(compose_tiny, tmp_path, list("xyz"), *rfcn, f"model.weights={tmp_path}/rfcn.pth")
    printed = capsys.readouterr().out
    assert "its classes are taken to be x, y, z, in this order" in printed
    assert "anew" not in printed


def test_a_file_of_cocos_ids_has_cocos_classes(tmp_path):
    tensors = {f"{SCORES}.bias": torch.arange(91.0), "backbone.body.conv1.weight": torch.zeros(1)}
    torch.save(tensors, tmp_path / "coco.pth")
    assert read_detector(str(tmp_path / "coco.pth")).class_names is None  # told by their number, in `start_from`
    assert (COCO_LABELS[1], COCO_LABELS[18], COCO_LABELS[90]) == ("person", "dog", "toothbrush")


def detectron2_file(path, classes=80):
    """A Mask R-CNN in the names and conventions of detectron2's model zoo."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    tensors = {
        "backbone.bottom_up.stem.conv1.weight": array(64, 3, 7, 7),
        "backbone.bottom_up.stem.conv1.norm.running_var": array(64),
        "backbone.bottom_up.res2.0.shortcut.weight": array(256, 64, 1, 1),
        "backbone.bottom_up.res2.0.shortcut.norm.bias": array(256),
        "backbone.bottom_up.res5.2.conv3.weight": array(2048, 512, 1, 1),
        "backbone.bottom_up.res5.2.conv3.norm.weight": array(2048),
        "backbone.fpn_lateral2.weight": array(256, 256, 1, 1),
        "backbone.fpn_output5.bias": array(256),
        "proposal_generator.rpn_head.conv.weight": array(256, 256, 3, 3),
        "proposal_generator.rpn_head.objectness_logits.bias": array(3),
        "proposal_generator.rpn_head.anchor_deltas.weight": array(12, 256, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": array(3, 4),
        "roi_heads.box_head.fc1.bias": array(1024),
        "roi_heads.box_head.fc2.weight": array(1024, 1024),
        "roi_heads.box_predictor.cls_score.weight": array(classes + 1, 1024),
        "roi_heads.box_predictor.bbox_pred.bias": array(4 * classes),
        "roi_heads.box_predictor.cls_score.bias": array(classes + 1),
        "roi_heads.mask_head.mask_fcn4.weight": array(256, 256, 3, 3),
        "roi_heads.mask_head.deconv.bias": array(256),
        "roi_heads.mask_head.predictor.bias": array(classes),
    }
    path.write_bytes(pickle.dumps({"model": tensors, "__author__": "Detectron2 Model Zoo"}, protocol=2))
    return tensors


def test_detectron2s_names_and_conventions(compose_tiny, tmp_path):
    given = detectron2_file(tmp_path / "model.pkl")
    found, classes = read_detectron2_file(str(tmp_path / "model.pkl"))
    assert classes == 80
    names = build(
        compose_tiny, tmp_path, [str(n) for n in range(80)], "model=mask_rcnn", "data.masks=true",
        "backbone=resnet50", "backbone.weights=null",
    ).state_dict()  # fmt: skip
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: tuple(names[name].shape) for name in found
    }
    assert len(found) == len(given) - 1  # anchors are no weights

    def same(ours, theirs):
        return np.array_equal(found[ours].numpy(), theirs)

    assert same("backbone.body.layer4.2.bn3.weight", given["backbone.bottom_up.res5.2.conv3.norm.weight"])
    assert same("backbone.body.layer1.0.downsample.0.weight", given["backbone.bottom_up.res2.0.shortcut.weight"])
    assert same("backbone.body.layer1.0.downsample.1.bias", given["backbone.bottom_up.res2.0.shortcut.norm.bias"])
    assert same("backbone.fpn.inner_blocks.0.0.weight", given["backbone.fpn_lateral2.weight"])
    assert same("backbone.fpn.layer_blocks.3.0.bias", given["backbone.fpn_output5.bias"])
    assert same("roi_heads.mask_head.3.0.weight", given["roi_heads.mask_head.mask_fcn4.weight"])
    # Background is the last class there and the first here.
    scores = given["roi_heads.box_predictor.cls_score.bias"]
    assert same(f"{SCORES}.bias", np.concatenate([scores[-1:], scores[:-1]]))
    assert same(f"{BOXES}.bias", np.concatenate([np.zeros(4), given["roi_heads.box_predictor.bbox_pred.bias"]]))
    # The first convolution gives of an image what it gives there of BGR in 0 .. 255 less the mean.
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(3, 7, 7))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    theirs = (given["backbone.bottom_up.stem.conv1.weight"] * (255 * (image - mean[:, None, None]))[::-1]).sum(
        (1, 2, 3)
    )
    ours = (found["backbone.body.conv1.weight"].numpy() * ((image - mean[:, None, None]) / std[:, None, None])).sum(
        (1, 2, 3)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evil.pkl", pickle.dumps({"model": Evil()}), r"it names builtins\.print"),
        ("cut.pkl", pickle.dumps({"model": {"a": np.zeros(9)}})[:-20], "cannot be read as detectron2's"),
        ("other.pkl", pickle.dumps([1, 2]), "holds no names with arrays"),
        ("absent.pth", None, "does not exist"),
        ("absent.pkl", None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_detector(str(path))
    assert "executed" not in capsys.readouterr().out


def test_weights_of_something_else(compose_tiny, tmp_path):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"nothing of it fits the backbone.*holds 'layer\.weight'"):
        build(compose_tiny, tmp_path, ["a"], "model=faster_rcnn", *RESNET, f"model.weights={tmp_path}/other.pth")
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        build(compose_tiny, tmp_path, ["a"], "model=faster_rcnn", *RESNET, f"model.weights={tmp_path}")


def test_frozen_modules_and_the_rate_of_the_backbone(compose_tiny, tmp_path):
    config = compose_tiny(
        tmp_path / "run", "optim.backbone_rate=0.1", "optim.frozen=[backbone.body.stem]", "trainer.max_steps=3"
    )
    runs.train(config)
    config.class_names = list("abcdef")
    torch.manual_seed(0)
    module = runs.build_module(config)
    rates = {
        name: group["lr"]
        for group in module.build_optimizer().param_groups
        for name, parameter in module.model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    rate = config.optim.optimizer.lr
    assert not [name for name in rates if name.startswith("backbone.body.stem.")]
    for name, value in rates.items():
        assert value == pytest.approx(rate * (0.1 if name.startswith("backbone.body.") else 1)), name
    assert len(rates) == len([p for p in module.model.parameters() if p.requires_grad])

    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    stem = {name: value for name, value in state.items() if name.startswith("model.backbone.body.stem.")}
    # Statistics of normalization stand still too.
    assert all(
        bool((value == (1 if name.endswith("running_var") else 0)).all())
        for name, value in stem.items()
        if "running" in name or name.endswith("tracked")
    )
    with pytest.raises(ConfigError, match=r"no module 'backbone\.body\.stm'; did you mean 'backbone\.body\.stem'"):
        runs.build_module(compose_tiny(tmp_path / "x", "optim.frozen=[backbone.body.stm]", "class_names=[a]"))
