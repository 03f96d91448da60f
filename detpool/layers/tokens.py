"""Pools tokens (N, L, C) to one vector per image or RoI, (N, C); tokens may be masked out.

A 7 x 7 RoI is 49 tokens (:func:`to_tokens`); so are the outputs of transformers. ``mask`` is boolean, (N, L), true
where a token counts; None: all do. A row without any is an error that names it (on devices other than the CPU, where
looking at values would stall the device, and in compiled graphs it is not looked for: means and attention give NaN
there, maxima minus infinity, CLS and last tokens the first one). Training and evaluation are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from detpool.ops.inputs import positive


def to_tokens(input: Tensor) -> Tensor:
    """Cells of maps (N, C, H, W) as tokens (N, H W, C), row by row."""
    return input.flatten(2).transpose(1, 2)


class ClsTokenPool(nn.Module):
    """The first token, ``Y = X[0]``, which attended to all others.

    Source: Devlin et al., BERT, arXiv:1810.04805, 2018, section 3; Dosovitskiy et al., ViT, arXiv:2010.11929, 2020.
    """

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C) and a mask (N, L), which has no influence, to (N, C)."""
        _check(tokens, mask)
        return tokens[:, 0]


class LastTokenPool(nn.Module):
    """The last token that counts, ``Y = X[max {l : mask[l]}]``: of a causal transformer, which has seen all others.

    Source: Radford et al., Improving Language Understanding by Generative Pre-Training, 2018, section 3.2.
    """

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C) and a mask (N, L) to (N, C)."""
        _check(tokens, mask)
        if mask is None:
            return tokens[:, -1]
        position = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.where(mask, position, 0).amax(dim=1)
        return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2]))[:, 0]


class MeanTokenPool(nn.Module):
    """``Y = sum m X / sum m``, m the mask: the average of the tokens that count.

    Source: Lin, Chen and Yan, Network in Network, arXiv:1312.4400, 2013, section 3.2; over tokens, Reimers and
    Gurevych, Sentence-BERT, arXiv:1908.10084, 2019.
    """

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C) and a mask (N, L) to (N, C)."""
        _check(tokens, mask)
        if mask is None:
            return tokens.mean(dim=1)
        return _weighted_mean(_counted(tokens, mask), mask.to(_wide(tokens)))


class MaxTokenPool(nn.Module):
    """``Y = max X`` over the tokens that count, channel by channel.

    Source: Collobert et al., Natural Language Processing (Almost) from Scratch, arXiv:1103.0398, 2011, section 3.3.2;
    Reimers and Gurevych, arXiv:1908.10084, 2019.
    """

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C) and a mask (N, L) to (N, C); among equals the gradient goes to one."""
        _check(tokens, mask)
        if mask is not None:
            tokens = torch.where(mask[:, :, None], tokens, -torch.inf)
        # Tokens are a map of one row, channels_last: PyTorch's fastest maximum.
        return adaptive_max_pool2d(tokens.transpose(1, 2)[:, :, None], 1).flatten(1)


class WeightedMeanTokenPool(nn.Module):
    """``Y = sum w X / sum w`` with weights given for each token, such as scores or areas; no parameters.

    Source: Arora, Liang and Ma, A Simple but Tough-to-Beat Baseline for Sentence Embeddings, ICLR 2017, algorithm 1.
    """

    def forward(self, tokens: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C), weights (N, L), 0 or more, and a mask (N, L) to (N, C).

        Raises:
            ValueError: If shapes are wrong, weights are negative, or all weights of an image are 0.
        """
        _check(tokens, mask)
        if weights.shape != tokens.shape[:2]:
            raise ValueError(
                f"weights must have the tokens' first two sizes {tuple(tokens.shape[:2])}, got {tuple(weights.shape)}"
            )
        weights = weights.to(_wide(tokens))
        if mask is not None:
            weights = torch.where(mask, weights, 0.0)
        if _looks_at_values(tokens):
            if not (weights >= 0).all():
                raise ValueError(f"weights must be 0 or more, got {weights.min().item():g}")
            _check_rows(weights > 0, "weights must be positive somewhere in every row: they are all 0")
        return _weighted_mean(_counted(tokens, mask), weights)


class LearnedMeanTokenPool(nn.Module):
    """``Y = sum w X``, ``w = softmax(v . X)`` over the tokens that count: a learned weighted mean.

    The score begins as 0, an average. Source: Lin et al., A Structured Self-attentive Sentence Embedding,
    arXiv:1703.03130, 2017, section 2.1, with a linear score; Ilse, Tomczak and Welling, arXiv:1802.04712, 2018.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Linear(positive(channels, "channels"), 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C) and a mask (N, L) to (N, C)."""
        _check(tokens, mask)
        tokens = _counted(tokens, mask)
        scores = self.score(tokens)[:, :, 0].to(_wide(tokens))
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return _weighted_mean(tokens, scores.softmax(dim=1))


class AttentionTokenPool(nn.Module):
    """Set Transformer's pooling by multi-head attention: k learned seeds S query the tokens, ``Y = PMA_k(X)``.

    ``Z = rFF(X)``, ``H = norm(S + attention(S, Z, Z))``, ``Y = norm(H + rFF(H))``, rFF a linear layer and ReLU. The
    attention is PyTorch's. Source: Lee et al., Set Transformer, arXiv:1810.00825, 2018, sections 3.1 (MAB), 3.2 (PMA).

    Args:
        channels: C, divisible by ``heads``.
        seeds: k, number of output vectors.
        heads: number of attention heads.

    Raises:
        ValueError: If a size is not positive, or ``channels`` is not divisible by ``heads``.
    """

    def __init__(self, channels: int, seeds: int = 1, heads: int = 4) -> None:
        super().__init__()
        if positive(channels, "channels") % positive(heads, "heads"):
            raise ValueError(f"heads must divide channels, got channels={channels!r}, heads={heads!r}")
        self.seeds = nn.Parameter(torch.empty(positive(seeds, "seeds"), channels))
        nn.init.xavier_uniform_(self.seeds)
        self.before = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)
        self.after = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.norm_after = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C) and a mask (N, L) to (N, seeds, C)."""
        _check(tokens, mask)
        values = self.before(_counted(tokens, mask))
        seeds = self.seeds.expand(tokens.shape[0], -1, -1)
        ignored = None if mask is None or not len(tokens) else ~mask
        attended, _ = self.attention(seeds, values, values, key_padding_mask=ignored, need_weights=False)
        hidden = self.norm(seeds + attended)
        return self.norm_after(hidden + self.after(hidden))


TOKEN_POOLS: dict[str, type[nn.Module]] = {
    "cls": ClsTokenPool,
    "last": LastTokenPool,
    "mean": MeanTokenPool,
    "max": MaxTokenPool,
    "learned_mean": LearnedMeanTokenPool,
    "attention": AttentionTokenPool,
}
"""Pools that need nothing but tokens, by the names that :class:`ConcatTokenPool` takes."""


class ConcatTokenPool(nn.Module):
    """The concatenated outputs of several pools of the same tokens, ``Y = (Y_1, Y_2, ...)``.

    Source: Howard and Ruder, Universal Language Model Fine-tuning, arXiv:1801.06146, 2018, section 3.3 (last, max,
    mean).

    Args:
        channels: C.
        pools: names in :data:`TOKEN_POOLS`.

    Raises:
        ValueError: If there are no pools, or a name is unknown.
    """

    def __init__(self, channels: int, pools: Sequence[str] = ("mean", "max")) -> None:
        super().__init__()
        if isinstance(pools, str) or not pools or not set(pools) <= set(TOKEN_POOLS):
            raise ValueError(f"pools must be some of {', '.join(TOKEN_POOLS)}, got {pools!r}")
        learned = (LearnedMeanTokenPool, AttentionTokenPool)
        kinds = [TOKEN_POOLS[name] for name in pools]
        self.pools = nn.ModuleList(
            kind(positive(channels, "channels")) if kind in learned else kind() for kind in kinds
        )

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, L, C) and a mask (N, L) to (N, pools x C)."""
        return torch.cat([pool(tokens, mask).flatten(1) for pool in self.pools], dim=1)


class ScalarMix(nn.Module):
    """A learned mean of the outputs of several layers, ``Y = gamma sum s_l X_l``, ``s = softmax(w)``.

    w begins as 0, an average, and gamma as 1. Source: Peters et al., Deep Contextualized Word Representations (ELMo),
    arXiv:1802.05365, 2018, equation 1.

    Args:
        layers: number of layers.

    Raises:
        ValueError: If it is less than one or, in ``forward``, differs from the number of outputs.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(positive(layers, "layers")))
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """``layers`` tensors of the same shape to one."""
        if len(outputs) != len(self.weights):
            raise ValueError(f"outputs must be of {len(self.weights)} layers, got {len(outputs)}")
        shares = (self.gamma * self.weights.softmax(0)).to(outputs[0].dtype)
        return torch.einsum("l,l...->...", shares, torch.stack(list(outputs)))


def _weighted_mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """(N, L, C) and (N, L) to (N, C); sums in float32 at least."""
    total = torch.bmm(weights[:, None], tokens.to(weights.dtype))[:, 0]
    return (total / weights.sum(dim=1, keepdim=True)).to(tokens.dtype)


def _counted(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros for tokens that do not count: a weight of 0 would not keep out NaN."""
    return tokens if mask is None else torch.where(mask[:, :, None], tokens, 0.0)


def _wide(tokens: Tensor) -> torch.dtype:
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def _check(tokens: Tensor, mask: Tensor | None) -> None:
    if tokens.dim() != 3 or not tokens.is_floating_point() or tokens.shape[1] < 1:
        raise ValueError(
            f"tokens must be floating, of shape (N, L, C), L at least 1, got {tuple(tokens.shape)} {tokens.dtype}"
        )
    if mask is None:
        return
    if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be boolean, of shape {tuple(tokens.shape[:2])}, got {tuple(mask.shape)} {mask.dtype}"
        )
    if _looks_at_values(tokens):
        _check_rows(mask, "mask must leave a token in every row: it leaves none")


def _check_rows(some: Tensor, message: str) -> None:
    empty = ~some.any(dim=1)
    if empty.any():
        raise ValueError(f"{message} in row {int(empty.nonzero()[0])} of {len(some)}")


def _looks_at_values(tokens: Tensor) -> bool:
    return tokens.device.type == "cpu" and not torch.compiler.is_compiling()
