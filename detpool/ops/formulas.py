"""Formulas of reductions, written once for the bins of RoIs and for the windows of pooling layers.

A formula asks for nothing but averages. It is given ``means``, which takes a function from values to one tensor or
more, applied elementwise, and returns the averages of each over every bin.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Means = Callable[[Callable[[Tensor], tuple[Tensor, ...]]], tuple[Tensor, ...]]


def widened(features: Tensor) -> Tensor:
    """``features`` in the type that formulas compute in: float64 if they are, else float32."""
    return features if features.dtype == torch.float64 else features.to(torch.float32)


def power(p: Tensor) -> Tensor:
    """A trained power kept at 1 or more: ``2 - p`` below 1. Clamped, it would never get a gradient again."""
    return torch.where(p < 1, 2 - p, p)


def scale_of(largest: Tensor) -> Tensor:
    """``largest`` where values can be divided by it, else 1."""
    return torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)


def lp(means: Means, p: float | Tensor, scale: Tensor, bin_scale: Tensor) -> Tensor:
    """``mean(|v|^p)^(1/p)``, 0 for a bin of zeros, with gradients that are finite there.

    Args:
        means: averages over the bins.
        p: the power, at least 1.
        scale: positive, broadcastable to the values: about their largest magnitude, so that powers neither overflow
            nor all vanish. Has no part in the result, which loses bins all of whose values are below
            ``scale * 1e-38^(1/p)``.
        bin_scale: the same, broadcastable to the bins.
    """
    (powers,) = means(lambda values: ((values.abs() / scale) ** p,))
    # The root of a denormal number has a gradient that overflows, and the number itself hardly a digit.
    some = ~(powers < torch.finfo(powers.dtype).tiny)  # NaN is among them, and stays
    roots = torch.where(some, powers, 1.0) ** (1 / p)
    return torch.where(some, roots * bin_scale, 0.0)


def weighted(means: Means, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """``mean(v w(v)) / mean(w(v))``, 0 for a bin whose weights are all 0."""

    def weights_and_products(values: Tensor) -> tuple[Tensor, Tensor]:
        weights = weight(values)
        return weights, weights * values

    total, products = means(weights_and_products)
    some = total != 0
    return torch.where(some, products / torch.where(some, total, 1.0), 0.0)
