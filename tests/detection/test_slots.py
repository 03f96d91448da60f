"""Every member of every slot in a detector, and what a slot must leave as it is."""

import functools
import inspect
import re

import pytest
import torch
import torchvision
from detector_cases import CHECKED, composed, train_and_evaluate
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from detpool import layers, ops
from detpool.config import check
from detpool.detection import faster_rcnn_c5
from detpool.detection.backbones import FPNBackbone, SingleMapBackbone, SmallCNN, resnet
from detpool.detection.heads import ClassMapHead, ConvHead, FlattenHead, PooledHead, TokenHead, build_box_predictor
from detpool.errors import ConfigError

MEMBERS = {
    slot: sorted(CHECKED.choices(slot)) for slot in ("stem_pool", "downsample", "context", "head_pool", "reduction")
}
UNLIKE_A_STRIDE = ["fractional_sqrt2"]  # of 2: maps have other strides, see test_fractional_strides.py
HALVING = [name for name in MEMBERS["downsample"] if name not in ("own", *UNLIKE_A_STRIDE)]
TRAINED = MEMBERS | {"stem_pool": HALVING, "downsample": HALVING}
CONTEXTS = [name for name in MEMBERS["context"] if name != "none"]
TWO_POINTS = ["pooler=pool", "pooler.operator.sampling_ratio=2"]  # an axis: of one, all reductions are the same
SMALL_ASPP = ["context.width=8", "context.rates=[1,2]"]


@functools.cache
def layer(slot, name):
    """The factory that a config file describes."""
    return instantiate(CHECKED.compose([f"{slot}={name}"])[slot])


@pytest.mark.parametrize("row", range(max(map(len, TRAINED.values()))))
def test_every_member_trains(row):
    """Each row has a member of every slot, and each member is in some row."""
    chosen = {slot: names[row % len(names)] for slot, names in TRAINED.items()}
    extra = SMALL_ASPP if chosen["context"] == "aspp" else []
    _, reached = train_and_evaluate(
        composed("faster_rcnn", None, [*TWO_POINTS, *[f"{slot}={name}" for slot, name in chosen.items()], *extra])
    )

    def count(pattern):
        return len([name for name in reached if re.search(pattern, name)])

    factory = layer("downsample", chosen["downsample"])
    learned = len(list(factory(**channels_of(factory)).parameters()))
    # The stem's, and two in each of three stages.
    assert count(r"^backbone\..*(stem\.4\.|\.(shortcut_)?pool\.)") == 7 * learned
    assert (count(r"^backbone\.context\.") > 0) == (chosen["context"] in ("aspp", "spp"))
    assert count(r"^roi_heads\.box_head\.") >= 4  # two layers
    assert count(r"^roi_heads\.box_roi_pool\.") == {"learned_mixed": 1, "gated": 2}.get(chosen["reduction"], 0)


def channels_of(factory):
    return {"channels": 8} if "channels" in inspect.signature(factory).parameters else {}


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("faster_rcnn_c4", ["downsample=blur", "context=lrn"]),  # the taken stage downsamples RoIs
        ("faster_rcnn_dc5", ["context=aspp", *SMALL_ASPP]),
        ("rfcn", ["stem_pool=lp", "downsample=gated", "context=spp"]),  # a dilated stage has nothing to replace
        ("light_head_rcnn", ["downsample=softmax", "context=spp"]),
        ("iou_net", ["head_pool=gem", "context=spp"]),
        ("mask_rcnn", ["pooler@mask_pooler=pool", "+reduction@mask_pooler.operator=lp"]),
        ("faster_rcnn", ["reduction=max"]),  # RoIAlign's own
        ("iou_net", ["head_pool=class_maps"]),
        ("faster_rcnn", ["head_pool=token_weighted", "head_pool.mix_layers=true", "head_pool.encoder_layers=2"]),
        (
            "faster_rcnn",
            [
                "stem_pool=max",
                "stem_pool.padding=same",
                "downsample=lp",
                "downsample.dilation=2",
                "downsample.padding=same",
            ],
        ),
        ("faster_rcnn", [*TWO_POINTS, "reduction=lp", "pooler.operator.reduction.learnable=true"]),
        ("faster_rcnn", ["context=aspp", *SMALL_ASPP, "data.batch_size=1", "data.train_images=2"]),
    ],
    ids=str,
)
def test_slots_in_other_detectors(model, overrides):
    train_and_evaluate(composed(model, None, overrides))


def dropped():
    """Every second cell and nothing else: a strided convolution, split in two."""
    return layers.BlurPool2d(filter_size=1, stride=2)


def with_values_of(network, other):
    """Gives `network` the parameters and buffers of one of the same layers in the same order."""
    values = list(other.state_dict().values())
    names = list(network.state_dict())
    network.load_state_dict(dict(zip(names, values, strict=True)))
    return network.eval()


def test_dropping_cells_behind_a_convolution_is_a_strided_one():
    torch.manual_seed(0)
    strided = SmallCNN((4, 6, 6, 8), depth=2).eval()
    split = with_values_of(SmallCNN((4, 6, 6, 8), depth=2, stem_pool=dropped, downsample=dropped), strided)
    image = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        for one, other in zip(split(image), strided(image), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 32), ("resnet50", 32), ("resnet50", 16)])
def test_so_it_is_in_torchvisions_resnets(name, stride):
    torch.manual_seed(0)
    strided = resnet(name, weights=None, output_stride=stride).eval()
    split = resnet(name, weights=None, output_stride=stride, stem_pool=layer("stem_pool", "max"), downsample=dropped)
    with_values_of(split, strided)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(split(image), strided(image), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_empty_slots_leave_state_dicts_as_they_are():
    network = torchvision.models.resnet18(weights=None)
    names = [name for name in network.state_dict() if not name.startswith("fc.")]
    assert list(resnet("resnet18", weights=None).state_dict()) == names
    batch_norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    convolution = ["0.weight", *[f"1.{name}" for name in batch_norm]]
    blocks = ["stem.0", "stem.2", "stage1.0.conv1", "stage1.0.conv2"]
    blocks += [f"stage2.0.{part}" for part in ("conv1", "conv2", "shortcut")]
    assert list(SmallCNN((4, 6)).state_dict()) == [f"{block}.{name}" for block in blocks for name in convolution]
    pyramid = FPNBackbone(SmallCNN((4, 6)), 4)
    assert {name.split(".")[0] for name in pyramid.state_dict()} == {"body", "fpn"}


@pytest.mark.parametrize("name", HALVING)
def test_strides_and_memory_format_stay(name):
    pools = {"stem_pool": layer("stem_pool", name), "downsample": layer("downsample", name)}
    small = (4, 6, 8, 8)
    image = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    for body in (
        SmallCNN(small, **pools),
        SmallCNN(small, output_stride=8, **pools),
        resnet("resnet18", None, **pools),
    ):
        maps = body.to(memory_format=torch.channels_last)(image)
        sizes = [(2, channels, 64 // s, 96 // s) for channels, s in zip(body.channels, body.strides, strict=True)]
        assert [m.shape for m in maps] == sizes
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)


@pytest.mark.parametrize("name", CONTEXTS)
def test_context_keeps_memory_format_and_small_maps(name):
    torch.manual_seed(0)
    backbone = SingleMapBackbone(SmallCNN((4, 6, 8)), context=layer("context", name))
    backbone = backbone.to(memory_format=torch.channels_last)
    for size in (16, 64):  # one cell, at stride 16
        image = torch.rand(2, 3, size, size).contiguous(memory_format=torch.channels_last)
        before, after = backbone.body(image)[-1], backbone(image)["0"]
        assert after.shape == before.shape
        assert after.is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(after, before)


def test_what_pools_learn_is_trained_in_frozen_stages(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    pools = {"stem_pool": layer("stem_pool", "gated"), "downsample": layer("downsample", "gated")}
    body = resnet("resnet18", weights=str(tmp_path / "r.pth"), trainable_stages=0, **pools)
    trained = {name for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert len(trained) == 7
    assert all(name.endswith(".gate") for name in trained)


def test_pooling_single_bins_is_the_flatten_head():
    torch.manual_seed(0)
    flatten = FlattenHead((4, 5, 3), 8)
    pooled = PooledHead((4, 5, 3), functools.partial(layers.TiledPool2d, tile_size=1), 8)
    with_values_of(pooled, flatten)
    rois = torch.rand(6, 4, 5, 3)
    assert torch.equal(pooled(rois), flatten(rois))


@pytest.mark.parametrize(
    ("pool", "arguments", "bins"),
    [
        (layers.ClsTokenPool, {"class_token": True}, "all"),
        (layers.LastTokenPool, {"causal": True}, "all"),
        (layers.LastTokenPool, {"encoder_layers": 0}, "last"),
        (layers.ClsTokenPool, {"encoder_layers": 0}, "first"),
        (layers.ClsTokenPool, {"causal": True}, "first"),
    ],
)
def test_which_bins_a_token_head_sees(pool, arguments, bins):
    torch.manual_seed(0)
    rois = torch.rand(2, 8, 3, 4, requires_grad=True)
    TokenHead((8, 3, 4), pool, 16, **arguments)(rois).square().sum().backward()
    seen = rois.grad.abs().sum(dim=(0, 1)).flatten() > 0
    expected = {"all": torch.ones(12), "last": torch.eye(12)[-1], "first": torch.eye(12)[0]}[bins]
    assert torch.equal(seen, expected.bool())


@pytest.mark.parametrize("name", MEMBERS["head_pool"])
def test_heads_take_no_roi_and_any_bins(name):
    head = layer("head_pool", name)((8, 5, 6), channels=16).eval()
    for count in (0, 3):
        rois = torch.rand(count, 8, 5, 6)
        for agnostic in (False, True):
            logits, deltas = build_box_predictor(head, 2, agnostic)(head(rois))
            assert (logits.shape, deltas.shape) == ((count, 3), (count, 12))
            assert not agnostic or torch.equal(deltas[:, :4], deltas[:, 8:])


def test_class_maps_average_to_logits_without_a_fully_connected_layer():
    """A convolution of one cell and an average are a linear layer of the average, which torchvision's predictor is."""
    torch.manual_seed(0)
    head, average = ClassMapHead((3, 5, 4), 6, 2).double().eval(), ConvHead((3, 5, 4), 6, 2).double().eval()
    with_values_of(average, head)
    predictor, linear = (build_box_predictor(each, 2).double() for each in (head, average))
    linear.load_state_dict(
        {
            f"{new}.{kind}": predictor.state_dict()[f"{old}.{kind}"].flatten(1 if kind == "weight" else 0)
            for new, old in (("cls_score", "class_maps"), ("bbox_pred", "delta_maps"))
            for kind in ("weight", "bias")
        }
    )
    rois = torch.rand(3, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    for found, expected in zip(predictor(head(rois)), linear(average(rois)), strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(isinstance(module, nn.Linear) for part in (head, predictor) for module in part.modules())
    assert torch.autograd.gradcheck(lambda x: predictor(head(x)), rois, fast_mode=True)


def test_attention_weights_are_those_of_the_class_token():
    torch.manual_seed(0)
    head = TokenHead(
        (8, 2, 3), layers.WeightedMeanTokenPool, 16, 2, 2, class_token=True, attention_weights=True, mix_layers=True
    ).double()
    nn.init.normal_(head.mix.weights)
    seen = {}
    head.layers.register_forward_pre_hook(lambda _, given: seen.update(pooled=given[0]))
    rois = torch.rand(2, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    head(rois)
    tokens = torch.cat([head.class_token.expand(2, 1, 8), rois.flatten(2).mT], 1) + head.positions
    first = head.encoder[0](tokens)
    last = head.encoder[1]
    q, k, _ = (last.norm1(first) @ last.self_attn.in_proj_weight.T + last.self_attn.in_proj_bias).chunk(3, -1)
    scores = sum((q[:, :1, h] @ k[:, :, h].mT / 2).softmax(-1) / 2 for h in (slice(0, 4), slice(4, 8)))[:, 0, 1:]
    shares = head.mix.weights.exp() / head.mix.weights.exp().sum()
    mixed = sum(s * each for s, each in zip(shares, (tokens, first, last(first)), strict=True))[:, 1:]
    expected = (scores[:, :, None] * mixed).sum(1) / scores.sum(1, keepdim=True)
    torch.testing.assert_close(seen["pooled"], expected)
    assert torch.autograd.gradcheck(head, rois, fast_mode=True)


@pytest.mark.parametrize("arguments", [{}, {"class_token": True, "encoder_layers": 0}])
def test_attention_weights_without_attention(arguments):
    with pytest.raises(ConfigError, match=r"head_pool.attention_weights: a class token knows of bins by attending"):
        TokenHead((8, 3, 4), layers.WeightedMeanTokenPool, 16, attention_weights=True, **arguments)


@pytest.mark.parametrize("arguments", [{"encoder_layers": 0}, {"causal": True}])
def test_a_class_token_that_would_be_the_same_of_all_rois(arguments):
    with pytest.raises(ConfigError, match=r"head_pool.class_token: a class token .* set head_pool.class_token=true"):
        TokenHead((8, 3, 4), layers.ClsTokenPool, 16, class_token=True, **arguments)


def test_the_reduction_group_is_the_operator_librarys_code():
    factory = instantiate(CHECKED.compose(["pooler=pool", "reduction=lp"]).pooler)
    pooler = factory(featmap_names=["0"], strides=[4])
    features, boxes = torch.rand(1, 3, 16, 16), torch.tensor([[3.0, 5.0, 40.0, 60.0]])
    pooled = pooler({"0": features}, [boxes], [(64, 64)])
    expected = ops.pool(features, [boxes], 7, 1 / 4, reduction=ops.reductions.Lp(3.0))
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=lite0", "downsample=max"], r"no downsample; these do: backbone=convnext_tiny, .*small"),
        (
            ["backbone=timm", "backbone.name=resnet18", "stem_pool=max"],
            r"has no stem_pool; these do: backbone=convnext_tiny, .*vgg16",
        ),
        (["model=rfcn", "+head_pool=flatten"], r"has no head_pool; these do: model=cascade_mask_rcnn, .*spp_net"),
        (["model=rfcn", "head_pool=flatten"], "the model that was chosen has no head_pool; these do: model=cascade"),
        (
            ["mask_pooler=roi_pool"],
            "has no mask_pooler; these do: model=cascade_mask_rcnn, mask_rcnn, mask_rcnn_c4, mask_rcnn_c5",
        ),
        (
            ["pooler=roi_pool", "reduction=mean"],
            r"no argument 'reduction'.*these take it: pooler=all_levels, .*pool, .*",
        ),
        (
            ["pooler=spp", "reduction=max"],
            "SpatialPyramidPooler has no argument 'operator', set in configs/reduction/max",
        ),
        (["model._target_=detpool.no_model"], "model._target_=detpool.no_model cannot be imported"),
        (["reduction=lp"], r"reduction must be text, got an object .*reduction/lp.yaml\); these take it: pooler=pool$"),
        (["downsample.p=3"], r"downsample\.p is set, and no downsample is chosen: add downsample="),
        (["downsample=lp", "downsample.q=3"], "downsample: LpPool2d has no argument 'q'; choose from"),
        (["stem_pool=blurr"], "stem_pool=blurr does not exist; did you mean 'blur'"),
        (["context=sppp"], "did you mean 'spp'"),
        (["reduction.p=3"], "reduction is no part of the config: choose one with reduction=gated, "),
    ],
)
def test_parts_that_nothing_takes_are_refused_with_what_does(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(CHECKED.compose(overrides), CHECKED, overrides)


def test_a_context_that_changes_the_map_is_refused():
    with pytest.raises(
        ConfigError, match=r"context must keep the shape of a map: \(1, 6, 8, 8\) became \(1, 6, 4, 4\)"
    ):
        SingleMapBackbone(SmallCNN((4, 6)), context=functools.partial(nn.MaxPool2d, 2))


def test_class_maps_take_no_vector_of_the_image():
    factory = functools.partial(ClassMapHead, channels=8, convolutions=1)
    with pytest.raises(
        ConfigError, match=r"model.head_context=mean is added to vectors of RoIs, and head_pool=class_maps"
    ):
        faster_rcnn_c5(2, SmallCNN((4, 6)), layer("pooler", "roi_align"), factory, head_context="mean")


@pytest.mark.parametrize("slot", MEMBERS)
def test_each_slot_has_a_study_of_all_members(slot):
    path = CHECKED.folder / "study" / f"{slot}.yaml"
    assert path.read_text().startswith(f"# @package _global_\n# python train.py -m study={slot}\n# ")
    swept = OmegaConf.load(path).hydra.sweeper.params
    assert sorted(swept[slot].split(",")) == [name for name in MEMBERS[slot] if name not in UNLIKE_A_STRIDE]
    assert swept.seed == "0,1,2"
