"""Networks of torchvision and timm as bodies: their own maps, strides, places for pooling, and a training step."""

import functools

import pytest
import timm
import torch
import torchvision
from detector_cases import composed, train_and_evaluate
from torch import nn

from detpool import layers
from detpool.detection.backbones import Body, FPNBackbone, SmallCNN, timm_body, torchvision_body, vit
from detpool.errors import ConfigError

SWIN, VIT = "swin_tiny_patch4_window7_224", "vit_small_patch16_224"
MAPS = {  # modules of torchvision's networks whose outputs are the maps
    "vgg16": ["features.15", "features.22", "features.29", "features.30"],
    "densenet121": ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features"],
    "googlenet": ["conv3", "inception3b", "inception4e", "inception5b"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
}
dropped = functools.partial(layers.BlurPool2d, filter_size=1, stride=2)  # every second cell and nothing else
own = functools.partial  # of a layer's class: the network's own pooling, given as if another


def maps_of(name: str, image: torch.Tensor) -> list[torch.Tensor]:
    """The maps within torchvision's classifier, of the weights of seed 0."""
    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **extra).eval()
    found: dict[str, torch.Tensor] = {}
    for module in MAPS[name]:
        network.get_submodule(module).register_forward_hook(
            lambda _, inputs, output, module=module: found.update({module: output.clone()})
        )
    with torch.no_grad():
        network(image)
    last = MAPS[name][-1]
    return [map.relu() if module == last == "features" else map for module, map in found.items()]


@pytest.mark.parametrize(
    ("name", "stem_pool", "downsample"),
    [
        *((name, None, None) for name in MAPS),
        ("vgg16", own(nn.MaxPool2d, 2), own(nn.MaxPool2d, 2)),
        ("densenet121", own(nn.MaxPool2d, 3, 2, 1), own(nn.AvgPool2d, 2)),
        ("googlenet", own(nn.MaxPool2d, 3, 2, ceil_mode=True), None),
        ("convnext_tiny", None, dropped),
    ],
)
def test_maps_are_torchvisions_also_with_its_own_pooling_in_the_slots(name, stem_pool, downsample):
    image = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    expected = maps_of(name, image)
    torch.manual_seed(0)
    body = torchvision_body(name, None, stem_pool=stem_pool, downsample=downsample).eval()
    with torch.no_grad():
        maps = body(image)
    assert body.strides == [4, 8, 16, 32]
    assert body.channels == [map.shape[1] for map in maps]
    for map, one in zip(maps, expected, strict=True):
        torch.testing.assert_close(map, one, atol=1e-5, rtol=1e-5)


def test_weights_of_files_normalisation_and_frozen_norms(tmp_path):
    network = torchvision.models.densenet121(weights=None)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    # As torchvision's files have them: `denselayer1.norm.1`, and a classifier.
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in network.state_dict().items()
    }
    torch.save(old, tmp_path / "densenet.pth")
    body = torchvision_body("densenet121", weights=str(tmp_path / "densenet.pth"))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().features(image).relu()
        torch.testing.assert_close(body.train()(image)[-1], expected, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    assert torchvision_body("googlenet", None).image_mean == (0.5, 0.5, 0.5)
    caffe = torchvision_body("vgg16", "IMAGENET1K_FEATURES", pretrained=False)
    assert caffe.image_std == pytest.approx((1 / 255,) * 3)


def test_stages_that_are_left_out_or_taken():
    image = torch.rand(1, 3, 64, 64)
    whole, shorter = (torchvision_body("vgg16", None, output_stride=stride).eval() for stride in (32, 16))
    assert (shorter.channels, shorter.strides) == ([256, 512, 512], [4, 8, 16])
    shorter.load_state_dict(whole.state_dict())
    with torch.no_grad():
        maps = whole(image)
        for one, other in zip(shorter(image), maps[:3], strict=True):
            assert torch.equal(one, other)
        stage, channels = shorter.take_last_stage()
        assert channels == 512
        assert torch.equal(stage(shorter(image)[-1]), maps[2])


def test_swin_has_timms_own_maps():
    torch.manual_seed(0)
    network = timm.create_model(SWIN, strict_img_size=False).eval()
    body = timm_body(SWIN, None).eval()
    state = {key.replace("layers.", "layers_", 1): value for key, value in network.state_dict().items()}
    kept = {key: state[key] for key in body.network.state_dict()}
    body.network.load_state_dict(kept)
    image = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        expected = network.forward_intermediates(image, intermediates_only=True)
        maps = body(image)
    assert [map.shape[1] for map in maps] == body.channels == [96, 192, 384, 768]
    for map, one in zip(maps, expected, strict=True):
        torch.testing.assert_close(map, one, atol=1e-5, rtol=1e-5)


def test_vit_has_timms_own_map_and_class_token():
    torch.manual_seed(0)
    features = timm.create_model(VIT, features_only=True, dynamic_img_size=True, out_indices=[-1]).eval()
    whole = timm.create_model(VIT, dynamic_img_size=True).eval()
    body = vit(VIT, None).eval()
    body.network.load_state_dict(features.model.state_dict(), strict=False)
    whole.load_state_dict(body.network.state_dict(), strict=False)
    whole.norm = nn.Identity()
    image = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        (map,), prefix = body.maps_and_prefix(image)
        torch.testing.assert_close(map, features(image)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(prefix[:, 0], whole.forward_features(image)[:, 0], atol=1e-5, rtol=1e-5)
    assert (body.channels, body.strides, prefix.shape) == ([384], [16], (2, 1, 384))


def peak(maps: list[torch.Tensor], before: list[torch.Tensor]) -> list[tuple[int, ...]]:
    """Of each map the cell that changed most."""
    changes = [(map - one)[0].abs().sum(0) for map, one in zip(maps, before, strict=True)]
    return [tuple(int(i) for i in torch.unravel_index(change.argmax(), change.shape)) for change in changes]


@pytest.mark.parametrize(
    ("build", "patch"), [(lambda: timm_body(SWIN, None), 4), (lambda: FPNBackbone(vit(VIT, None), 32), 16)]
)
def test_an_impulse_moves_as_strides_say(build, patch):
    """A patch, which transformers know nothing smaller of, changes most a cell in it, or beside it."""
    torch.manual_seed(0)
    network = build().eval()

    def maps_of(image: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            maps = network(image)
        return maps if isinstance(network, Body) else [maps[name] for name in network.level_names]

    blank = torch.rand(1, 3, 256, 256) * 0.1
    before = maps_of(blank)
    assert network.strides == [4, 8, 16, 32]
    offsets = []
    for row, column in ((64, 96), (96, 96), (96, 192), (160, 32)):
        image = blank.clone()
        image[..., row : row + patch, column : column + patch] += 3.0
        cells = zip(peak(maps_of(image), before), network.strides, strict=True)
        offsets.append([(y - row // stride, x - column // stride) for (y, x), stride in cells])
    for stride, found in zip(network.strides, zip(*offsets, strict=True), strict=True):
        # The levels that ViT's pyramid makes of stride 16 look different for each patch.
        assert len(set(found)) == 1 or (patch == 16 and stride != 16), (stride, found)
        assert all(-1 <= offset <= max(patch // stride, 1) for each in found for offset in each)


def test_places_that_networks_do_not_have():
    blur = functools.partial(layers.BlurPool2d, 3, 2)
    for build, message in (
        (lambda: torchvision_body("vgg61", None), "'vgg61' is not a network of torchvision .*; did you mean 'vgg1"),
        (
            lambda: torchvision_body("convnext_tiny", None, stem_pool=blur),
            "stem_pool: the stem of convnext_tiny is one",
        ),
        (lambda: torchvision_body("vgg16", None, output_stride=2), "output_stride must be 4 or more"),
        (lambda: timm_body(VIT, None), f"maps of one stride, 16, .*: backbone=vit_small backbone.name={VIT} has"),
        (lambda: vit("resnet18", None), "resnet18 is no plain vision transformer"),
        (lambda: vit("convnext_tiny", None), "convnext_tiny is no plain vision transformer"),
        (lambda: vit("vit_smal_patch16_224", None), "did you mean 'vit_small_patch16_224'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build()


@pytest.mark.parametrize(
    ("backbone", "model", "overrides"),
    [
        ("vgg16", "faster_rcnn_dc5", ["stem_pool=blur", "downsample=softmax", "context=spp"]),
        ("vgg16", "faster_rcnn_c4", ["backbone.output_stride=16"]),
        ("densenet121", "faster_rcnn", ["stem_pool=lp", "downsample=max_blur"]),
        ("googlenet", "faster_rcnn", ["downsample=mixed", "model.head_context=mean"]),
        ("convnext_tiny", "faster_rcnn", ["downsample=gated"]),
        ("swin_tiny", "faster_rcnn", ["context=lrn"]),
        ("vit_small", "faster_rcnn", ["model.head_context=cls", "context=lrn"]),
        ("vit_small", "faster_rcnn_c5", ["model.head_context=attention"]),
        ("small", "mask_rcnn", ["model.head_context=attention"]),
    ],
)
def test_detectors_on_them_train(backbone, model, overrides):
    weights = [] if backbone == "small" else ["backbone.weights=null"]
    config = composed(model, None, [*weights, *overrides], backbone=backbone)
    _, reached = train_and_evaluate(config)
    assert any(name.startswith("backbone.") for name in reached)
    context = [name for name in reached if name.startswith("roi_heads.image_context.")]
    assert bool(context) == any("head_context" in override for override in overrides)


def test_a_class_token_that_is_not_there():
    config = composed("faster_rcnn", None, ["model.head_context=cls"])
    with pytest.raises(Exception, match="head_context=cls: SmallCNN has no class token; backbone=vit_small has"):
        train_and_evaluate(config)
    assert not SmallCNN((8, 8)).has_class_token
