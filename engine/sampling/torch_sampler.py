"""From logits to tokens, all rows of a mixed batch in one pass, each by its own parameters.

logits → repetition penalty → temperature → the strategy's cut → one draw by the inverse of the
distribution function in the order of ids. Every operation works along a row, and none rounds
differently for another number of rows, so a row's token cannot depend on its neighbours.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.blocks import chunks, ids_in, largest, maxima, sums, taken
from textmill.engine.sampling.logits_filters import Weights, cut_of, weigh
from textmill.engine.sampling.token_records import NUM_ALTERNATIVES, Probabilities, SamplingState
from textmill.engine.sampling.uniform import uniform


@dataclass(frozen=True, slots=True)
class Choice:
    """A row's next token.

    Attributes:
        token: its id.
        odds: what might have been drawn; ``None`` where no trace is wanted or the likeliest was
            simply taken.
    """

    token: int
    odds: Probabilities | None


def is_greedy(parameters: DecodingParameters) -> bool:
    """Whether the likeliest token is taken, whatever the seed."""
    return (
        parameters.strategy == "greedy"
        or parameters.temperature == 0.0
        or (parameters.strategy == "top_k" and parameters.top_k == 1)
    )


def choose(logits: Tensor, rows: Sequence[SamplingState]) -> list[Choice]:
    """One token a row.

    Args:
        logits: (rows, vocabulary) float32; left as they are.
        rows: the rows' parameters and texts, in the same order.
    """
    vocabulary_size = logits.shape[-1]
    kinds: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        kind = "greedy" if is_greedy(row.parameters) else cut_of(row.parameters, vocabulary_size)
        kinds.setdefault(kind, []).append(index)
    choices: dict[int, Choice] = {}
    for kind, alike in kinds.items():
        for part in chunks(alike, vocabulary_size):
            way = _take if kind == "greedy" else _draw
            found = way(logits, part, [rows[i] for i in part])
            choices.update(zip(part, found, strict=True))
    return [choices[index] for index in range(len(rows))]


def sound_rows(logits: Tensor) -> list[bool]:
    """Per row, whether a token can be chosen at all: no NaN, and a largest number.

    Args:
        logits: (rows, vocabulary) float32.
    """
    sound: list[bool] = logits.amax(-1).isfinite().tolist()  # the maximum with a NaN is NaN
    return sound


def _take(logits: Tensor, part: Sequence[int], rows: Sequence[SamplingState]) -> list[Choice]:
    """The first of each row's largest scores; ``argmax`` over whole rows takes ten times longer."""
    scores = taken(logits, part)
    _penalise(scores, rows)
    ids = ids_in(maxima(scores).argmax(-1, keepdim=True))
    best = scores.gather(-1, ids).argmax(-1, keepdim=True)
    return [Choice(token, None) for token in ids.gather(-1, best)[:, 0].tolist()]


def _draw(logits: Tensor, part: Sequence[int], rows: Sequence[SamplingState]) -> list[Choice]:
    """A token a row from its distribution; all rows of one kind."""
    scores = taken(logits, part)
    likeliest = None
    if any(row.parameters.trace for row in rows):
        likeliest = largest(scores, min(NUM_ALTERNATIVES, logits.shape[-1]))[1]
    _penalise(scores, rows)
    weights = weigh(scores, [row.parameters for row in rows], logits.shape[-1])
    shares = [uniform(row.parameters.seed, row.position) for row in rows]
    places, totals = _places(weights.values, shares)
    tokens = weights.tokens(places)
    odds: list[Probabilities | None] = [None] * len(rows)
    if likeliest is not None:
        odds = _odds(weights, totals, tokens, likeliest)
    return [
        Choice(token, own if row.parameters.trace else None)
        for token, own, row in zip(tokens[:, 0].tolist(), odds, rows, strict=True)
    ]


def _odds(
    weights: Weights, totals: Tensor, tokens: Tensor, others: Tensor
) -> list[Probabilities | None]:
    shares = weights.of(torch.cat([tokens, others], -1)) / totals
    return [
        Probabilities(own[0], ids, own[1:])
        for own, ids in zip(shares.tolist(), others.tolist(), strict=True)
    ]


def _penalise(scores: Tensor, rows: Sequence[SamplingState]) -> None:
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
    places = (torch.tensor(wanting) * scores.shape[-1]).repeat_interleave(counts)
    places += torch.frombuffer(ids, dtype=torch.int64)
    values = scores.view(-1).index_select(0, places)
    # A token that stands there twice is written twice, with the same number.
    values = torch.where(values < 0, values * penalties, values / penalties)
    scores.view(-1).index_copy_(0, places, values)


def _places(weights: Tensor, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Where the running sum of each row passes a share of the whole: whole blocks, then one.

    Args:
        weights: (rows, a multiple of ``BLOCK_TOKENS``) float32.
        shares: of each row, in [0, 1).

    Returns:
        places (rows, 1) int64, and the sums of all weights (rows, 1) float64.
    """
    by_block = sums(weights)
    ends = by_block.cumsum(-1, dtype=torch.float64)
    total = ends[:, -1:].contiguous()
    target = torch.tensor(shares, dtype=torch.float64)[:, None] * total
    block = _first_beyond(ends, target)
    start = ends.gather(-1, block) - by_block.gather(-1, block)
    places = ids_in(block)
    within = weights.gather(-1, places).cumsum(-1, dtype=torch.float64)
    return places.gather(-1, _first_beyond(within, target - start)), total


def _first_beyond(sums: Tensor, target: Tensor) -> Tensor:
    """Where running sums first exceed their target; of those that never do, where they last rose.

    Args:
        sums: (rows, n) float64, contiguous.
        target: (rows, 1) float64; by rounding it may be as large as the whole.
    """
    found = torch.searchsorted(sums, target, right=True)
    return torch.minimum(found, torch.searchsorted(sums, sums[:, -1:].contiguous()))
