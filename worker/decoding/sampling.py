"""From logits to tokens, all rows of a mixed batch in one pass, each by its own parameters.

logits → repetition penalty → temperature → the strategy's cut → one draw by the inverse of the
distribution function in the order of ids. Every operation works along a row, so a row's token
cannot depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.strategies import DecodingParameters
from worker.decoding.cuts import cut
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
    scores = penalised(logits, rows)
    choices: list[Choice | None] = [None] * len(rows)
    greedy = [i for i, row in enumerate(rows) if is_greedy(row.parameters)]
    drawn = [i for i, row in enumerate(rows) if not is_greedy(row.parameters)]
    if greedy:
        tokens = _part(scores, greedy).argmax(-1).tolist()  # the first of equals
        for index, token in zip(greedy, tokens, strict=True):
            choices[index] = Choice(token, None)
    if drawn:
        chosen = [rows[i] for i in drawn]
        weights = draw_weights(_part(scores, drawn), [row.parameters for row in chosen])
        tokens = _draw(weights, chosen)
        for place, (index, token) in enumerate(zip(drawn, tokens, strict=True)):
            traced = weights[place] if rows[index].parameters.trace else None
            choices[index] = Choice(token, traced)
    return [choice for choice in choices if choice is not None]


def sound_rows(logits: Tensor) -> list[bool]:
    """Per row, whether a token can be chosen at all: no NaN, and a largest number.

    Args:
        logits: (rows, vocabulary) float32.
    """
    sound: list[bool] = logits.amax(-1).isfinite().tolist()  # the maximum with a NaN is NaN
    return sound


def penalised(logits: Tensor, rows: Sequence[RowState]) -> Tensor:
    """The repetition penalty of CTRL (Keskar et al., 2019), over prompt and text.

    Args:
        logits: (rows, vocabulary) float32; left as they are.
        rows: whose tokens are penalised.

    Returns:
        ``logits`` itself where no row has a penalty.
    """
    if all(row.parameters.repetition_penalty == 1.0 for row in rows):
        return logits
    scores = logits.clone()
    for own, row in zip(scores, rows, strict=True):
        penalty = row.parameters.repetition_penalty
        if penalty != 1.0:
            seen = torch.tensor(list(set(row.ids)))
            values = own[seen]
            own[seen] = torch.where(values < 0, values * penalty, values / penalty)
    return scores


def draw_weights(scores: Tensor, rows: Sequence[DecodingParameters]) -> Tensor:
    """What tokens are drawn by: probabilities, zero outside the cut.

    Args:
        scores: (rows, vocabulary) float32, after the penalty.
        rows: parameters of the rows; no temperature is 0.

    Returns:
        (rows, vocabulary) float32. A row does not sum to one after a cut: to divide by the sum
        would change the arithmetic of a cut that cuts nothing.
    """
    # A float32 of the smallest temperature must not be zero.
    coldest = torch.finfo(torch.float32).tiny
    temperatures = torch.tensor([max(row.temperature, coldest) for row in rows])[:, None]
    # Subtracting the maximum first keeps a temperature near zero from overflowing.
    shifted = (scores - scores.amax(-1, keepdim=True)) / temperatures
    return cut(scores, torch.softmax(shifted, -1), rows)


def _draw(weights: Tensor, rows: Sequence[RowState]) -> list[int]:
    """The token of each row at which the running sum passes a uniform share of the whole."""
    shares = [uniform(row.parameters.seed, row.position) for row in rows]
    sums = weights.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:].contiguous()
    target = torch.tensor(shares, dtype=torch.float64)[:, None] * total
    tokens = torch.searchsorted(sums, target, right=True)
    # Where the product was rounded up to the whole, the last token that may be drawn.
    last = torch.searchsorted(sums, total)
    return torch.minimum(tokens, last)[:, 0].tolist()


def _part(scores: Tensor, rows: list[int]) -> Tensor:
    return scores if len(rows) == scores.shape[0] else scores[rows]
