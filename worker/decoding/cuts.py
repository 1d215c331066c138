"""The strategies' cuts: which tokens may be drawn.

Semantics are those of transformers' logits processors, with one deviation: where equals stand on
both sides of a bound, transformers keeps them all and we keep the lower ids, so that top_k never
keeps more than k. A cut that keeps everything leaves no trace in the arithmetic that follows,
which is what makes the identities of the contract exact. No row's result depends on another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.strategies import DecodingParameters

# Most nuclei are smaller; only rows whose nucleus is not covered go on to the next, and to a sort.
NUCLEUS_GUESSES_TOKENS = (64, 1024)


def cut(scores: Tensor, probabilities: Tensor, rows: Sequence[DecodingParameters]) -> Tensor:
    """Set to zero what a row's strategy may not draw.

    Args:
        scores: (rows, vocabulary) float32, by which tokens are ordered.
        probabilities: (rows, vocabulary) float32, after the temperature; changed in place.
        rows: whose strategies and cuts apply.

    Returns:
        ``probabilities``; in every row at least one is not zero.
    """
    size = scores.shape[-1]
    masks: dict[str, Callable[[Tensor, Tensor, list[DecodingParameters]], Tensor]]
    masks = {"top_k": _top_k, "top_p": _top_p, "min_p": _min_p, "typical": _typical}
    for strategy, mask in masks.items():
        chosen = [i for i, row in enumerate(rows) if _cuts(row, strategy, size)]
        if len(chosen) == len(rows):
            return probabilities.mul_(mask(scores, probabilities, list(rows)))
        if chosen:
            own = probabilities[chosen]
            keep = mask(scores[chosen], own, [rows[i] for i in chosen])
            probabilities[chosen] = own.mul_(keep)
    return probabilities


def _cuts(row: DecodingParameters, strategy: str, vocabulary_size: int) -> bool:
    """Whether a row has this strategy, and it leaves anything out."""
    is_cut = {
        "top_k": row.top_k < vocabulary_size,
        "top_p": row.top_p < 1.0,
        "min_p": row.min_p > 0.0,
        "typical": row.typical_p < 1.0,
    }
    return row.strategy == strategy and is_cut[strategy]


def _top_k(scores: Tensor, _: Tensor, rows: list[DecodingParameters]) -> Tensor:
    counts = torch.tensor([row.top_k for row in rows])
    best = torch.topk(scores, int(counts.max())).values
    return _first(scores, counts, best.gather(-1, counts[:, None] - 1))


def _top_p(scores: Tensor, probabilities: Tensor, rows: list[DecodingParameters]) -> Tensor:
    """The nucleus (Holtzman et al., "The curious case of neural text degeneration", 2020)."""
    masses = torch.tensor([row.top_p for row in rows], dtype=torch.float64)
    return _smallest_sets(scores, probabilities, masses)


def _min_p(_: Tensor, probabilities: Tensor, rows: list[DecodingParameters]) -> Tensor:
    """Min-p (Nguyen et al., "Turning up the heat", 2024)."""
    shares = torch.tensor([row.min_p for row in rows], dtype=torch.float32)
    return probabilities >= shares[:, None] * probabilities.amax(-1, keepdim=True)


def _typical(_: Tensor, probabilities: Tensor, rows: list[DecodingParameters]) -> Tensor:
    """Tokens about as surprising as expected (Meister et al., "Locally typical sampling", 2022)."""
    masses = torch.tensor([row.typical_p for row in rows], dtype=torch.float64)
    logs = probabilities.log()
    # A running sum adds in the same order for one row as for many; ``sum`` does not.
    terms = torch.where(probabilities > 0, probabilities * logs, 0.0)
    entropy = -terms.cumsum(-1, dtype=torch.float64)[:, -1:].float()
    # What cannot be drawn is infinitely far from typical.
    closeness = torch.where(probabilities > 0, -(logs + entropy).abs(), -torch.inf)
    return _smallest_sets(closeness, probabilities, masses)


def _smallest_sets(order: Tensor, probabilities: Tensor, masses: Tensor) -> Tensor:
    """The first tokens of each row by ``order`` that together hold the row's mass; bool."""
    num_rows, size = order.shape
    counts = torch.zeros(num_rows, dtype=torch.int64)
    last = torch.zeros(num_rows, 1)
    pending = torch.arange(num_rows)
    for guess in (*(g for g in NUCLEUS_GUESSES_TOKENS if g < size), size):
        values, ids = torch.topk(order[pending], guess)
        sums = probabilities[pending].gather(-1, ids).double().cumsum(-1)
        wanted = masses[pending, None]
        needed = ((sums < wanted).sum(-1) + 1).clamp_(max=guess)
        is_covered = (sums[:, -1] >= wanted[:, 0]) | (guess == size)
        done = pending[is_covered]
        counts[done] = needed[is_covered]
        last[done] = values.gather(-1, needed[:, None] - 1)[is_covered]
        pending = pending[~is_covered]
        if not len(pending):
            break
    return _first(order, counts, last)


def _first(order: Tensor, counts: Tensor, last: Tensor) -> Tensor:
    """The first tokens of each row by ``order``, of equals the lower ids.

    Args:
        order: (rows, vocabulary) float32, larger is better.
        counts: (rows,) int64, how many to keep.
        last: (rows, 1) float32, the value of the last one kept.

    Returns:
        (rows, vocabulary) bool.
    """
    keep = order >= last
    for row in (keep.sum(-1) > counts).nonzero()[:, 0].tolist():  # equals beyond the bound; rare
        ties = order[row] == last[row]
        surplus = keep[row].sum() - counts[row]
        keep[row] &= ~ties | (ties.cumsum(-1) <= ties.sum() - surplus)
    return keep
