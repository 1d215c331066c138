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
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from core.strategies import DecodingParameters
from worker.decoding.blocks import chunks, ids_in, maxima, sums
from worker.decoding.nuclei import closeness, nuclei


def weigh(scores: Tensor, rows: Sequence[DecodingParameters], vocabulary_size: int) -> Tensor:
    """Turn scores into probabilities that are zero outside the strategy's cut.

    Args:
        scores: (rows, width) float32, after the penalty, ``blocks.taken``; changed in place.
        rows: parameters of the rows; no temperature is 0. Neighbours of a kind are done together.
        vocabulary_size: how many tokens there are.

    Returns:
        ``scores``; in every row at least one is not zero. A row does not sum to one after a cut:
        to divide by the sum would change the arithmetic of a cut that cuts nothing.
    """
    ways: dict[str, Callable[[Tensor, list[DecodingParameters]], None]]
    ways = {"": _all, "top_k": _top_k, "top_p": _top_p, "min_p": _min_p, "typical": _typical}
    start = 0
    for name, run in groupby(rows, lambda row: cut_of(row, vocabulary_size)):
        alike = list(run)
        ways[name](scores[start : start + len(alike)], alike)
        start += len(alike)
    return scores


def cut_of(row: DecodingParameters, vocabulary_size: float = math.inf) -> str:
    """The strategy by which a row is cut; empty where it leaves nothing out."""
    is_cut = {
        "top_k": row.top_k < vocabulary_size,
        "top_p": row.top_p < 1.0,
        "min_p": row.min_p > 0.0,
        "typical": row.typical_p < 1.0,
    }
    return row.strategy if is_cut.get(row.strategy, False) else ""


def _all(scores: Tensor, rows: list[DecodingParameters]) -> None:
    for own in chunks(scores):
        _soften(scores[own], rows[own])


def _top_k(scores: Tensor, rows: list[DecodingParameters]) -> None:
    counts = torch.tensor([row.top_k for row in rows])
    last = _largest(scores, int(counts.max())).gather(-1, counts[:, None] - 1)
    for own in chunks(scores):
        keep = _first(scores[own], counts[own], last[own])
        _soften(scores[own], rows[own]).mul_(keep)


def _min_p(scores: Tensor, rows: list[DecodingParameters]) -> None:
    """Min-p (Nguyen et al., "Turning up the heat", 2024)."""
    shares = torch.tensor([row.min_p for row in rows], dtype=torch.float32)[:, None]
    for own in chunks(scores):
        weights = _soften(scores[own], rows[own])
        weights.mul_(_at_least(weights, shares[own] * weights.amax(-1, keepdim=True)))


def _top_p(scores: Tensor, rows: list[DecodingParameters]) -> None:
    """The nucleus (Holtzman et al., "The curious case of neural text degeneration", 2020)."""
    _all(scores, rows)
    _keep_nuclei(scores, [row.top_p for row in rows], None)


def _typical(scores: Tensor, rows: list[DecodingParameters]) -> None:
    """Tokens about as surprising as expected (Meister et al., "Locally typical sampling", 2022)."""
    centres = []
    for own in chunks(scores):
        logits = torch.empty_like(scores[own])
        weights = _soften(scores[own], rows[own], logits)
        # An impossible token is never drawn, and says nothing.
        terms = logits.clamp_(min=torch.finfo(torch.float32).min).mul_(weights)
        means = sums(terms).cumsum(-1, dtype=torch.float64)[:, -1].tolist()
        largest = weights.amax(-1).tolist()
        centres += [most * math.exp(mean) for most, mean in zip(largest, means, strict=True)]
    # The weight of a token whose surprise is the entropy.
    _keep_nuclei(scores, [row.typical_p for row in rows], torch.tensor(centres)[:, None])


def _soften(scores: Tensor, rows: list[DecodingParameters], logits: Tensor | None = None) -> Tensor:
    """Probabilities by the rows' temperatures, in place; ``logits`` takes what they are made of."""
    # A float32 of the smallest temperature must not be zero.
    coldest = torch.finfo(torch.float32).tiny
    temperatures = torch.tensor([max(row.temperature, coldest) for row in rows])[:, None]
    # Subtracting the maximum first keeps a temperature near zero from overflowing.
    scores.sub_(scores.amax(-1, keepdim=True)).div_(temperatures)
    if logits is not None:
        logits.copy_(scores)
    return torch.softmax(scores, -1, out=scores)


def _keep_nuclei(weights: Tensor, shares: list[float], centres: Tensor | None) -> None:
    found = nuclei(weights, torch.tensor(shares, dtype=torch.float64)[:, None], centres)
    for own in chunks(weights):
        order = closeness(weights[own], None if centres is None else centres[own])
        weights[own].mul_(_at_least(order, found.last[own]))
    weights[found.surplus] = 0.0


def _largest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` largest values of each row, in their order; they lie in as many blocks."""
    largest = maxima(scores)
    if count < largest.shape[-1]:
        scores = scores.gather(-1, ids_in(largest.topk(count).indices))
    return scores.topk(count).values


def _first(scores: Tensor, counts: Tensor, last: Tensor) -> Tensor:
    """The first tokens of each row by their scores, of equals the lower ids.

    Args:
        scores: (rows, width) float32.
        counts: (rows,) int64, how many to keep.
        last: (rows, 1) float32, the score of the last one kept.

    Returns:
        (rows, width) float32, 1 where a token is kept and 0 elsewhere.
    """
    keep = _at_least(scores, last)
    for row in (keep.sum(-1) > counts).nonzero()[:, 0].tolist():  # equals beyond the bound; rare
        ties = (scores[row] == last[row]).nonzero()[:, 0]
        surplus = int(keep[row].sum()) - int(counts[row])
        keep[row, ties[len(ties) - surplus :]] = 0.0
    return keep


def _at_least(values: Tensor, bound: Tensor) -> Tensor:
    """1 and 0 in float32: to compare into a tensor of bool takes five times as long."""
    return torch.ge(values, bound, out=torch.empty_like(values))
