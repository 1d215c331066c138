"""The strategies' cuts: from scores to what tokens are drawn by.

Semantics are those of transformers' logits processors, with one deviation: where equals stand on
both sides of a bound, transformers keeps them all and we keep the lower ids, so that top_k never
keeps more than k. A cut that keeps everything leaves no trace in the arithmetic that follows,
which is what makes the identities of the contract exact.

No row's result depends on another's, to the last bit. Sums run along whole rows in one order or by
blocks; and of torch's functions only those are used that round alike wherever a number lies in
memory, as ``log`` and ``exp2`` do not: what is left over at the end of a thread's share is theirs
to compute in another way.
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
from textmill.engine.sampling.top_p import keep_nuclei


@dataclass(frozen=True, slots=True)
class Weights:
    """What tokens are drawn by: in proportion to it.

    Attributes:
        values: (rows, n) float32, zero outside the cut; in every row at least one is not zero;
            ``n`` is a multiple of ``BLOCK_TOKENS``.
        ids: (rows, n) int64, ascending; ``None`` where all tokens stand in their places.
    """

    values: Tensor
    ids: Tensor | None = None

    def tokens(self, places: Tensor) -> Tensor:
        """The ids that belong to places among the values, (rows, m) int64."""
        return places if self.ids is None else self.ids.gather(-1, places)

    def of(self, tokens: Tensor) -> Tensor:
        """The weights of some ids, (rows, m) int64; zero where there is none."""
        if self.ids is None:
            return self.values.gather(-1, tokens)
        places = torch.searchsorted(self.ids, tokens).clamp_(max=self.ids.shape[-1] - 1)
        return self.values.gather(-1, places) * (self.ids.gather(-1, places) == tokens)


def weigh(scores: Tensor, rows: list[DecodingParameters], vocabulary_size: int) -> Weights:
    """What each token is drawn by.

    Args:
        scores: (rows, width) float32, after the penalty, from ``blocks.taken``; overwritten.
        rows: parameters of the rows, all of one kind (``cut_of``); no temperature is 0.
        vocabulary_size: how many tokens there are.
    """
    ways: dict[str, Callable[[Tensor, list[DecodingParameters]], Weights]]
    ways = {"": _all, "top_k": _top_k, "top_p": _top_p, "min_p": _min_p, "typical": _typical}
    return ways[cut_of(rows[0], vocabulary_size)](scores, rows)


def cut_of(row: DecodingParameters, vocabulary_size: int) -> str:
    """The strategy by which a row is cut; empty where it leaves nothing out."""
    is_cut = {
        "top_k": row.top_k < vocabulary_size,
        "top_p": row.top_p < 1.0,
        "min_p": row.min_p > 0.0,
        "typical": row.typical_p < 1.0,
    }
    return row.strategy if is_cut.get(row.strategy, False) else ""


def _all(scores: Tensor, rows: list[DecodingParameters]) -> Weights:
    return Weights(torch.softmax(_tempered(scores, rows), -1, out=scores))


def _top_k(scores: Tensor, rows: list[DecodingParameters]) -> Weights:
    counts = torch.tensor([row.top_k for row in rows])[:, None]
    most = int(counts.max())
    best, ids = largest(scores, most)
    is_beyond = torch.arange(most) >= counts
    ids, order = ids.masked_fill(is_beyond, scores.shape[-1]).sort(-1)
    weights = (
        _tempered(best.contiguous(), rows).exp_().masked_fill_(is_beyond, 0.0).gather(-1, order)
    )
    missing = -most % BLOCK_TOKENS
    ids = functional.pad(ids, (0, missing), value=scores.shape[-1])
    return Weights(functional.pad(weights, (0, missing)), ids)


def _min_p(scores: Tensor, rows: list[DecodingParameters]) -> Weights:
    """Min-p (Nguyen et al., "Turning up the heat", 2024)."""
    shares = torch.tensor([row.min_p for row in rows], dtype=torch.float32)[:, None]
    weights = _all(scores, rows).values
    bound = shares * weights.amax(-1, keepdim=True)
    # Into a tensor of bool the comparison takes five times as long.
    return Weights(weights.mul_(torch.ge(weights, bound, out=torch.empty_like(weights))))


def _top_p(scores: Tensor, rows: list[DecodingParameters]) -> Weights:
    """The nucleus (Holtzman et al., "The curious case of neural text degeneration", 2020)."""
    shares = torch.tensor([row.top_p for row in rows], dtype=torch.float64)[:, None]
    weights = _all(scores, rows).values
    return Weights(keep_nuclei(weights, weights, shares))


def _typical(scores: Tensor, rows: list[DecodingParameters]) -> Weights:
    """Tokens about as surprising as expected (Meister et al., "Locally typical sampling", 2022)."""
    shares = torch.tensor([row.typical_p for row in rows], dtype=torch.float64)[:, None]
    weights = torch.softmax(_tempered(scores, rows), -1)
    # The likeliest has logit 0. An impossible token is never drawn, and says nothing.
    terms = scores.clamp_(min=torch.finfo(torch.float32).min).mul_(weights)
    means = sums(terms).cumsum(-1, dtype=torch.float64)[:, -1].tolist()
    likeliest = weights.amax(-1).tolist()
    # The weight of a token whose surprise is the entropy; a ratio to it tells the distance of
    # surprises without any logarithm.
    centres = [most * math.exp(mean) for most, mean in zip(likeliest, means, strict=True)]
    centre = torch.tensor(centres)[:, None]
    closeness = torch.minimum(weights / centre, torch.div(centre, weights, out=scores))
    return Weights(keep_nuclei(weights, closeness, shares))


def _tempered(scores: Tensor, rows: list[DecodingParameters]) -> Tensor:
    """Scores less their maximum, by the temperature; in place."""
    # A float32 of the smallest temperature must not be zero.
    coldest = torch.finfo(torch.float32).tiny
    temperatures = torch.tensor([max(row.temperature, coldest) for row in rows])[:, None]
    # Subtracting the maximum first keeps a temperature near zero from overflowing.
    return scores.sub_(scores.amax(-1, keepdim=True)).div_(temperatures)
