"""The strategies' filters in PyTorch: from scores to the weights by which tokens are drawn.

Their semantics are those of transformers' logits processors, with one deviation: where equal values
are on both sides of a bound, transformers keeps them all, and these filters keep the lower ids, so
that top_k never keeps more than k. A filter that keeps everything leaves no trace in the arithmetic
that follows, which makes the identities of ``filter_table`` exact.

A row's result does not depend on the other rows, to the last bit. Sums run along whole rows in one
order or by blocks. Only functions of torch are used that round alike wherever a number is in
memory; ``log`` and ``exp2`` do not, because the remainder of a thread's share is computed by other
code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.blocks import BLOCK_TOKENS, largest, sums
from textmill.engine.sampling.filter_table import filter_of
from textmill.engine.sampling.top_p import keep_top_p


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """The weights of tokens, proportional to the probabilities with which they are drawn.

    Attributes:
        values: (rows, n) float32, zero for tokens that the filter removed, with at least one
            positive value in each row; ``n`` is a multiple of ``BLOCK_TOKENS``.
        ids: (rows, n) int64, the tokens of the values, ascending; ``None`` if they are 0 to n - 1.
    """

    values: Tensor
    ids: Tensor | None = None

    def tokens(self, places: Tensor) -> Tensor:
        """The tokens at some places of ``values``, (rows, m) int64."""
        return places if self.ids is None else self.ids.gather(-1, places)

    def of(self, tokens: Tensor) -> Tensor:
        """The weights of some tokens, (rows, m) int64; zero for those without a place."""
        if self.ids is None:
            return self.values.gather(-1, tokens)
        places = torch.searchsorted(self.ids, tokens).clamp_(max=self.ids.shape[-1] - 1)
        return self.values.gather(-1, places) * (self.ids.gather(-1, places) == tokens)


def filtered_softmax(
    scores: Tensor, parameters: list[DecodingParameters], vocabulary_size: int
) -> TokenWeights:
    """Apply temperature, softmax and filter.

    Args:
        scores: (rows, width) float32, after the penalty, from ``blocks.padded_rows``; overwritten.
        parameters: those of the rows, all with the same ``filter_of`` and a temperature above 0.
        vocabulary_size: the number of tokens.
    """
    filters: dict[str, Callable[[Tensor, list[DecodingParameters]], TokenWeights]]
    filters = {"": _all, "top_k": _top_k, "top_p": _top_p, "min_p": _min_p, "typical": _typical}
    return filters[filter_of(parameters[0], vocabulary_size)](scores, parameters)


def _all(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    return TokenWeights(torch.softmax(_tempered(scores, parameters), -1, out=scores))


def _top_k(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    counts = torch.tensor([own.top_k for own in parameters])[:, None]
    most = int(counts.max())
    best, ids = largest(scores, most)
    is_beyond = torch.arange(most) >= counts
    ids, order = ids.masked_fill(is_beyond, scores.shape[-1]).sort(-1)
    exponentials = _tempered(best.contiguous(), parameters).exp_()
    weights = exponentials.masked_fill_(is_beyond, 0.0).gather(-1, order)
    missing = -most % BLOCK_TOKENS
    ids = functional.pad(ids, (0, missing), value=scores.shape[-1])
    return TokenWeights(functional.pad(weights, (0, missing)), ids)


def _min_p(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    """Min-p (Nguyen et al., "Turning up the heat", 2024)."""
    shares = torch.tensor([own.min_p for own in parameters], dtype=torch.float32)[:, None]
    weights = _all(scores, parameters).values
    bound = shares * weights.amax(-1, keepdim=True)
    # A comparison that writes bool takes five times as long.
    return TokenWeights(weights.mul_(torch.ge(weights, bound, out=torch.empty_like(weights))))


def _top_p(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    """The nucleus (Holtzman et al., "The curious case of neural text degeneration", 2020)."""
    shares = torch.tensor([own.top_p for own in parameters], dtype=torch.float64)[:, None]
    weights = _all(scores, parameters).values
    return TokenWeights(keep_top_p(weights, weights, shares))


def _typical(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    """Locally typical sampling (Meister et al., 2022): surprise closest to the entropy first."""
    shares = torch.tensor([own.typical_p for own in parameters], dtype=torch.float64)[:, None]
    weights = torch.softmax(_tempered(scores, parameters), -1)
    # The likeliest token has score 0. An impossible token must add 0, not NaN.
    terms = scores.clamp_(min=torch.finfo(torch.float32).min).mul_(weights)
    means = sums(terms).cumsum(-1, dtype=torch.float64)[:, -1].tolist()
    likeliest = weights.amax(-1).tolist()
    # The weight of a token whose surprise is the entropy. The ratio of a weight to it measures the
    # distance of the surprises without a logarithm.
    centers = [most * math.exp(mean) for most, mean in zip(likeliest, means, strict=True)]
    center = torch.tensor(centers)[:, None]
    closeness = torch.minimum(weights / center, torch.div(center, weights, out=scores))
    return TokenWeights(keep_top_p(weights, closeness, shares))


def _tempered(scores: Tensor, parameters: list[DecodingParameters]) -> Tensor:
    """Scores minus their maximum, divided by the temperature; in place."""
    # A temperature must not become zero in float32.
    coldest = torch.finfo(torch.float32).tiny
    temperatures = torch.tensor([max(own.temperature, coldest) for own in parameters])[:, None]
    # Subtracting the maximum first keeps a temperature near zero from overflowing.
    return scores.sub_(scores.amax(-1, keepdim=True)).div_(temperatures)
