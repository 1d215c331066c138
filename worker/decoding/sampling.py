"""From logits to tokens, all rows of a mixed batch in one pass, each by its own parameters.

logits → repetition penalty → temperature → the strategy's cut → one draw by the inverse of the
distribution function in the order of ids. Every operation works along a row, and none rounds
differently for another number of rows, so a row's token cannot depend on its neighbours.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from core.strategies import DecodingParameters
from worker.decoding.blocks import ids_in, maxima, sums, taken
from worker.decoding.cuts import cut_of, weigh
from worker.decoding.records import RowState
from worker.decoding.uniform import uniform


@dataclass(frozen=True, slots=True)
class Choice:
    """A row's next token.

    Attributes:
        token: its id.
        weights: (vocabulary,) float32, what it was drawn by, not normalised; ``None`` where no
            trace is wanted or the likeliest was simply taken.
    """

    token: int
    weights: Tensor | None


def is_greedy(parameters: DecodingParameters) -> bool:
    """Whether the likeliest token is taken, whatever the seed."""
    return (
        parameters.strategy == "greedy"
        or parameters.temperature == 0.0
        or (parameters.strategy == "top_k" and parameters.top_k == 1)
    )


def choose(logits: Tensor, rows: Sequence[RowState]) -> list[Choice]:
    """One token a row.

    Args:
        logits: (rows, vocabulary) float32; left as they are.
        rows: the rows' parameters and texts, in the same order.
    """
    greedy = [i for i, row in enumerate(rows) if is_greedy(row.parameters)]
    drawn = [i for i, row in enumerate(rows) if not is_greedy(row.parameters)]
    drawn.sort(key=lambda i: cut_of(rows[i].parameters))  # neighbours of a kind are cut together
    order = [*greedy, *drawn]
    ordered = [rows[i] for i in order]
    scores = taken(logits, order)  # all that follows happens in this one copy
    _penalise(scores, ordered)
    parameters = [row.parameters for row in ordered[len(greedy) :]]
    weights = weigh(scores[len(greedy) :], parameters, logits.shape[-1])
    tokens = _likeliest(scores[: len(greedy)]) + _draw(weights, ordered[len(greedy) :])
    choices = [Choice(token, None) for token in tokens]
    for place, index in enumerate(drawn):
        if rows[index].parameters.trace:
            token = tokens[len(greedy) + place]
            choices[len(greedy) + place] = Choice(token, weights[place, : logits.shape[-1]])
    return [choice for _, choice in sorted(zip(order, choices, strict=True), key=itemgetter(0))]


def sound_rows(logits: Tensor) -> list[bool]:
    """Per row, whether a token can be chosen at all: no NaN, and a largest number.

    Args:
        logits: (rows, vocabulary) float32.
    """
    sound: list[bool] = logits.amax(-1).isfinite().tolist()  # the maximum with a NaN is NaN
    return sound


def _penalise(scores: Tensor, rows: Sequence[RowState]) -> None:
    """The repetition penalty of CTRL (Keskar et al., 2019), over prompt and text, in place."""
    wanting = [i for i, row in enumerate(rows) if row.parameters.repetition_penalty != 1.0]
    ids = array("q")  # ten times as fast as a tensor from a list
    for index in wanting:
        ids.extend(rows[index].ids)
    if not ids:
        return
    counts = torch.tensor([len(rows[i].ids) for i in wanting])
    penalties = torch.tensor([rows[i].parameters.repetition_penalty for i in wanting])
    penalties = penalties.repeat_interleave(counts)
    owners = torch.tensor(wanting).repeat_interleave(counts)
    seen = torch.frombuffer(ids, dtype=torch.int64)
    values = scores[owners, seen]
    # A token that stands there twice is written twice, with the same number.
    scores[owners, seen] = torch.where(values < 0, values * penalties, values / penalties)


def _likeliest(scores: Tensor) -> list[int]:
    """The first of each row's largest scores; ``argmax`` over whole rows takes ten times longer."""
    ids = ids_in(maxima(scores).argmax(-1, keepdim=True))
    best = scores.gather(-1, ids).argmax(-1, keepdim=True)
    tokens: list[int] = ids.gather(-1, best)[:, 0].tolist()
    return tokens


def _draw(weights: Tensor, rows: Sequence[RowState]) -> list[int]:
    """The token of each row at which the running sum passes a uniform share of the whole.

    It runs over whole blocks first, then within the one where it passes.
    """
    shares = [uniform(row.parameters.seed, row.position) for row in rows]
    by_block = sums(weights)
    ends = by_block.cumsum(-1, dtype=torch.float64)
    target = torch.tensor(shares, dtype=torch.float64)[:, None] * ends[:, -1:]
    block = _first_beyond(ends, target)
    start = ends.gather(-1, block) - by_block.gather(-1, block)
    ids = ids_in(block)
    within = weights.gather(-1, ids).cumsum(-1, dtype=torch.float64)
    place = _first_beyond(within, target - start)
    tokens: list[int] = ids.gather(-1, place)[:, 0].tolist()
    return tokens


def _first_beyond(sums: Tensor, target: Tensor) -> Tensor:
    """Where running sums first exceed their target; of those that never do, where they last rose.

    Args:
        sums: (rows, n) float64, contiguous.
        target: (rows, 1) float64; by rounding it may be as large as the whole.
    """
    found = torch.searchsorted(sums, target, right=True)
    return torch.minimum(found, torch.searchsorted(sums, sums[:, -1:].contiguous()))
