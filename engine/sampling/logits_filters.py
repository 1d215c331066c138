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
from textmill.engine.sampling.filter_table import filters_of
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
    """Apply temperature, softmax and filters.

    Args:
        scores: (rows, width) float32, after the penalty, from ``blocks.padded_rows``; overwritten.
        parameters: those of the rows, all with the same ``filters_of`` and a temperature above 0.
        vocabulary_size: the number of tokens.
    """
    names = filters_of(parameters[0], vocabulary_size)
    if len(names) > 1:
        return _combined(scores, parameters, names)
    filters: dict[tuple[str, ...], Callable[[Tensor, list[DecodingParameters]], TokenWeights]]
    filters = {
        (): _all,
        ("top_k",): _top_k,
        ("top_p",): _top_p,
        ("min_p",): _min_p,
        ("typical",): _typical,
    }
    return filters[names](scores, parameters)


def exclude_top(weights: TokenWeights, rows: list[int], thresholds: list[float]) -> None:
    """Exclude the likely tokens of some rows, except the least likely of them, in place.

    p-e-w, "Exclude Top Choices (XTC)" (text-generation-webui, pull request 6335, 2024). Of equals
    the last is kept.

    Args:
        weights: of all rows.
        rows: indices of the rows.
        thresholds: the share of the probability from which a token is likely, of each of ``rows``.
    """
    own = weights.values[rows]
    totals = sums(own).cumsum(-1, dtype=torch.float64)[:, -1:]
    bounds = (torch.tensor(thresholds, dtype=torch.float64)[:, None] * totals).float()
    is_likely = (own >= bounds) & (own > 0.0)
    least = own.masked_fill(~is_likely, torch.inf).amin(-1, keepdim=True)
    places = torch.arange(own.shape[-1])
    last = places.masked_fill(~(is_likely & (own == least)), -1).amax(-1, keepdim=True)
    weights.values[rows] = own.masked_fill(is_likely & (places != last), 0.0)


def _all(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    return TokenWeights(torch.softmax(_tempered(scores, parameters), -1, out=scores))


def _combined(
    scores: Tensor, parameters: list[DecodingParameters], names: tuple[str, ...]
) -> TokenWeights:
    """Several filters, each on what the one before left as a whole distribution."""
    ids = None
    if names[0] == "top_k":
        scores, ids = _k_largest(scores, parameters)
        arguments = _tempered(scores, parameters)
        # Softmax would add in another order if another row had a larger k.
        weights = _as_whole(arguments.exp())
    else:
        arguments = _tempered(scores, parameters)
        weights = torch.softmax(arguments, -1)
    for name in names:
        if name == "top_p":
            weights = _keep_top_p(weights, parameters)
        elif name == "min_p":
            weights = _keep_min_p(weights, parameters)
        elif name == "typical":
            weights = _keep_typical(weights, arguments, parameters)
        weights = _as_whole(weights)
    return TokenWeights(weights, ids)


def _as_whole(weights: Tensor) -> Tensor:
    """The weights, in place, divided by their sum."""
    return weights.div_(sums(weights).cumsum(-1, dtype=torch.float64)[:, -1:].float())


def _top_k(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    best, ids = _k_largest(scores, parameters)
    return TokenWeights(_tempered(best, parameters).exp_(), ids)


def _k_largest(scores: Tensor, parameters: list[DecodingParameters]) -> tuple[Tensor, Tensor]:
    """Each row's own number of largest scores, and their ids, ascending; the rest is -inf."""
    counts = torch.tensor([min(own.top_k, scores.shape[-1]) for own in parameters])[:, None]
    most = int(counts.max())
    best, ids = largest(scores, most)
    is_beyond = torch.arange(most) >= counts
    ids, order = ids.masked_fill(is_beyond, scores.shape[-1]).sort(-1)
    best = best.masked_fill(is_beyond, -torch.inf).gather(-1, order)
    missing = -most % BLOCK_TOKENS
    ids = functional.pad(ids, (0, missing), value=scores.shape[-1])
    return functional.pad(best, (0, missing), value=-torch.inf), ids


def _min_p(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    return TokenWeights(_keep_min_p(_all(scores, parameters).values, parameters))


def _keep_min_p(weights: Tensor, parameters: list[DecodingParameters]) -> Tensor:
    """Min-p (Nguyen et al., "Turning up the heat", 2024), in place."""
    shares = torch.tensor([own.min_p for own in parameters], dtype=torch.float32)[:, None]
    bound = shares * weights.amax(-1, keepdim=True)
    # A comparison that writes bool takes five times as long.
    return weights.mul_(torch.ge(weights, bound, out=torch.empty_like(weights)))


def _top_p(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    return TokenWeights(_keep_top_p(_all(scores, parameters).values, parameters))


def _keep_top_p(weights: Tensor, parameters: list[DecodingParameters]) -> Tensor:
    """The nucleus (Holtzman et al., "The curious case of neural text degeneration", 2020)."""
    shares = torch.tensor([own.top_p for own in parameters], dtype=torch.float64)[:, None]
    return keep_top_p(weights, weights, shares)


def _typical(scores: Tensor, parameters: list[DecodingParameters]) -> TokenWeights:
    weights = torch.softmax(_tempered(scores, parameters), -1)
    return TokenWeights(_keep_typical(weights, scores, parameters))


def _keep_typical(weights: Tensor, scores: Tensor, parameters: list[DecodingParameters]) -> Tensor:
    """Locally typical sampling (Meister et al., 2022): surprise closest to the entropy first.

    Args:
        weights: (rows, n) float32, each row's sum is 1.
        scores: (rows, n) float32, the arguments of their exponentials; overwritten.
        parameters: of the rows.
    """
    shares = torch.tensor([own.typical_p for own in parameters], dtype=torch.float64)[:, None]
    # The likeliest token has score 0. An impossible token must add 0, not NaN.
    terms = scores.clamp_(min=torch.finfo(torch.float32).min).mul_(weights)
    means = sums(terms).cumsum(-1, dtype=torch.float64)[:, -1].tolist()
    likeliest = weights.amax(-1).tolist()
    # The weight of a token whose surprise is the entropy. The ratio of a weight to it measures the
    # distance of the surprises without a logarithm.
    centers = [most * math.exp(mean) for most, mean in zip(likeliest, means, strict=True)]
    center = torch.tensor(centers)[:, None]
    closeness = torch.minimum(weights / center, torch.div(center, weights, out=scores))
    return keep_top_p(weights, closeness, shares)


def _tempered(scores: Tensor, parameters: list[DecodingParameters]) -> Tensor:
    """Scores minus their maximum, divided by the temperature; in place."""
    # A temperature must not become zero in float32.
    coldest = torch.finfo(torch.float32).tiny
    temperatures = torch.tensor([max(own.temperature, coldest) for own in parameters])[:, None]
    # Subtracting the maximum first keeps a temperature near zero from overflowing.
    return scores.sub_(scores.amax(-1, keepdim=True)).div_(temperatures)
