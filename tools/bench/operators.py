"""Finds the operators of `detpool.ops`, users' own operators, and variants of operators by their arguments."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from detpool import ops
from detpool.errors import did_you_mean
from detpool.own_packages import import_named

Function = Callable[..., Tensor]

VARIANTS = ("roi_align:reduction=max", "ps_roi_pool:convention=rfcn", "pr_roi_pool:position_sensitive=True")
"""Variants that have their own names in the literature, and thus their own rows by default."""


@dataclass(frozen=True)
class Operator:
    """A pooling operator with its fixed arguments."""

    name: str
    function: Function
    keywords: Mapping[str, Any] = field(default_factory=dict)
    position_sensitive: bool = False
    box_gradients: bool = False
    """Whether boxes get a gradient."""

    @property
    def has_backends(self) -> bool:
        """Whether the backend can be chosen, so that results can be compared with those of the reference backend."""
        return "backend" in inspect.signature(self.function).parameters

    @property
    def needs_offsets(self) -> bool:
        """Whether offsets of the bins are required; for `pool` they are optional."""
        parameter = inspect.signature(self.function).parameters.get("offsets")
        return parameter is not None and parameter.default is parameter.empty and "offsets" not in self.keywords

    @property
    def is_rotated(self) -> bool:
        """Whether boxes have an angle."""
        return getattr(self.function, "__name__", "").endswith("_rotated")

    def bind(self, sampling_ratio: int, backend: str | None) -> Function:
        """Returns the operator as `op(features, boxes, output_size=, spatial_scale=)`.

        Args:
            sampling_ratio: points per bin and axis, for operators that sample points.
            backend: the backend, for operators that have several; None: the default.
        """
        if self.keywords.get("sampling") in ("cells", "integral"):
            sampling_ratio = 0
        keywords = {"sampling_ratio": sampling_ratio, "backend": backend, **self.keywords}
        parameters = inspect.signature(self.function).parameters
        keywords = {name: value for name, value in keywords.items() if name in parameters}
        if not self.needs_offsets and not self.is_rotated:
            return partial(self.function, **keywords)  # `RoIPooler` passes it all maps of a pyramid at once

        def bound(features: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float) -> Tensor:
            extra = {"offsets": _offsets(len(boxes), *output_size)} if self.needs_offsets else {}
            boxes = _rotated(boxes) if self.is_rotated else boxes
            return self.function(
                features, boxes, output_size=output_size, spatial_scale=spatial_scale, **extra, **keywords
            )

        return bound


def functions_of(namespace: Any = ops) -> dict[str, Function]:
    """The public functions of a module whose first arguments are `input` and `boxes`."""
    public = {name: getattr(namespace, name) for name in namespace.__all__}
    return {
        name: function
        for name, function in public.items()
        if inspect.isfunction(function) and list(inspect.signature(function).parameters)[:2] == ["input", "boxes"]
    }


def discover(functions: Mapping[str, Function]) -> tuple[dict[str, Operator], dict[str, str]]:
    """Examines all functions and their variants.

    Returns:
        The operators by name, and the reasons why others cannot be measured, by name.
    """
    found: dict[str, Operator] = {}
    refused: dict[str, str] = {}
    for name in (*functions, *(variant for variant in VARIANTS if variant.partition(":")[0] in functions)):
        try:
            found[name] = examine(name, functions)
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


def examine(name: str, functions: Mapping[str, Function]) -> Operator:
    """Returns an operator by name: `roi_pool`, `pool:sampling=integral,reduction=max`, `my_package.my_operator`, ...

    A small call determines its kind: from 4 channels and 2 x 2 bins it computes 4 output channels, or 1 if each bin has
    its own channels.

    Raises:
        ValueError: If the function or an argument does not exist, or it cannot be called like a pooling operator.
    """
    base, _, rest = name.partition(":")
    function = _of_user(base) if "." in base else functions.get(base)
    if function is None:
        raise ValueError(f"unknown operator {base!r}{did_you_mean(base, functions)}")
    parameters = inspect.signature(function).parameters
    keywords = dict(_keyword(base, text, parameters) for text in rest.split(",") if rest)
    operator = Operator(name, function, keywords)
    features = torch.ones(1, 4, 6, 6).requires_grad_()
    boxes = torch.tensor([[0.0, 1.2, 1.1, 4.7, 4.9]]).requires_grad_()
    try:
        output = operator.bind(2, "reference")(features, boxes, output_size=(2, 2), spatial_scale=0.9)
        grads = torch.autograd.grad(output.sum(), (features, boxes), allow_unused=True)
    except Exception as error:  # registered rules may raise anything
        raise ValueError(f"cannot be called with (input, boxes, output_size, spatial_scale): {error}") from error
    if tuple(output.shape) not in ((1, 4, 2, 2), (1, 1, 2, 2)):
        raise ValueError(f"makes {tuple(output.shape)} of one RoI with 2 x 2 bins and 4 channels")
    return Operator(name, function, keywords, output.shape[1] == 1, grads[1] is not None)


def _of_user(name: str) -> Function:
    """Imports the function with a dotted name.

    Raises:
        ValueError: If the module does not exist, cannot be imported, or does not have this function.
    """
    module, _, attribute = name.rpartition(".")
    found = import_named(module, name)
    function = getattr(found, attribute, None)
    if function is None:
        public = [known for known in vars(found) if not known.startswith("_")]
        raise ValueError(f"{module} has no {attribute!r}{did_you_mean(attribute, public)}")
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"{name} must be a function of (input, boxes, output_size, spatial_scale), got {function!r}")
    return function


def _keyword(function: str, text: str, known: Mapping[str, inspect.Parameter]) -> tuple[str, Any]:
    """Parses `key=value` as a pair; the value is a Python literal, or else a string."""
    key, _, value = text.partition("=")
    if not value:
        raise ValueError(f"arguments of {function} are written key=value, got {text!r}")
    if key not in known:
        raise ValueError(f"{function} has no argument {key!r}{did_you_mean(key, known)}")
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        found = value
    if isinstance(known[key].default, bool) and not isinstance(found, bool):
        raise ValueError(f"{key} of {function} must be True or False, got {value!r}")
    return key, found


@cache
def _offsets(rois: int, height: int, width: int) -> Tensor:
    """Offsets of deformable bins: (rois, 2, height, width), normally distributed, in units of `trans_std` RoIs."""
    return torch.randn(rois, 2, height, width, generator=torch.Generator().manual_seed(2))


def _rotated(boxes: Tensor) -> Tensor:
    """Rotates boxes (K, 5) by 30 degrees about their centers: (K, 6)."""
    centre, size = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    return torch.cat([boxes[:, :1], centre, size, torch.full_like(boxes[:, :1], 30.0)], dim=1)
