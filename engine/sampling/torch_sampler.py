"""From logits to tokens in PyTorch: a batch of mixed strategies, each row by its own parameters.

logits → penalties → temperature → the strategy's filters → one draw by the inverse of the
distribution function in the order of ids. Every operation works along a row, and none rounds
differently for another number of rows, so a row's token does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textmill.engine.sampling.blocks import chunks, ids_in, largest, maxima, padded_rows, sums
from textmill.engine.sampling.filter_table import excludes_top, filters_of, is_greedy
from textmill.engine.sampling.logits_filters import TokenWeights, exclude_top, filtered_softmax
from textmill.engine.sampling.penalties import drop_below, penalize, spreads
from textmill.engine.sampling.token_records import NUM_ALTERNATIVES, Probabilities, SamplingState
from textmill.engine.sampling.uniform import uniform

_GREEDY = ("greedy",)


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A row's next token.

    Attributes:
        id: the token.
        probabilities: after the filters; ``None`` without a trace, and for greedy decoding.
    """

    id: int
    probabilities: Probabilities | None


def sample_tokens(logits: Tensor, states: Sequence[SamplingState]) -> list[DrawnToken]:
    """Sample one token for each row.

    Args:
        logits: (rows, vocabulary) float32; not modified.
        states: the state of each row.
    """
    vocabulary_size = logits.shape[-1]
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, state in enumerate(states):
        is_certain = is_greedy(state.parameters)
        kind = _GREEDY if is_certain else filters_of(state.parameters, vocabulary_size)
        kinds.setdefault(kind, []).append(index)
    drawn: dict[int, DrawnToken] = {}
    for kind, alike in kinds.items():
        for part in chunks(alike, vocabulary_size):
            sample = _argmax if kind == _GREEDY else _draw
            found = sample(logits, part, [states[i] for i in part])
            drawn.update(zip(part, found, strict=True))
    return [drawn[index] for index in range(len(states))]


def finite_rows(logits: Tensor) -> list[bool]:
    """Whether a token can be sampled from each row: no NaN, and a finite maximum.

    Args:
        logits: (rows, vocabulary) float32.
    """
    finite: list[bool] = logits.amax(-1).isfinite().tolist()  # the maximum with a NaN is NaN
    return finite


def _argmax(
    logits: Tensor, part: Sequence[int], states: Sequence[SamplingState]
) -> list[DrawnToken]:
    """The first of each row's largest scores; ``argmax`` over whole rows takes ten times longer."""
    scores = padded_rows(logits, part)
    penalize(scores, states)
    ids = ids_in(maxima(scores).argmax(-1, keepdim=True))
    best = scores.gather(-1, ids).argmax(-1, keepdim=True)
    return [DrawnToken(token, None) for token in ids.gather(-1, best)[:, 0].tolist()]


def _draw(logits: Tensor, part: Sequence[int], states: Sequence[SamplingState]) -> list[DrawnToken]:
    """One draw from each row's distribution; all rows have the same filters."""
    scores = padded_rows(logits, part)
    likeliest = None
    if any(state.parameters.trace for state in states):
        likeliest = largest(scores, min(NUM_ALTERNATIVES, logits.shape[-1]))[1]
    cuts = [i for i, s in enumerate(states) if s.parameters.top_n_sigma > 0.0]
    widths = spreads(scores, cuts, states)
    penalize(scores, states)
    drop_below(scores, cuts, widths)
    weights = filtered_softmax(scores, [s.parameters for s in states], logits.shape[-1])
    excluding = [i for i, state in enumerate(states) if excludes_top(state)]
    if excluding:
        exclude_top(weights, excluding, [states[i].parameters.xtc_threshold for i in excluding])
    numbers = [uniform(state.parameters.seed, state.position) for state in states]
    places, totals = _inverse_cdf(weights.values, numbers)
    tokens = weights.tokens(places)
    probabilities: list[Probabilities | None] = [None] * len(states)
    if likeliest is not None:
        probabilities = _probabilities(weights, totals, tokens, likeliest)
    return [
        DrawnToken(token, own if state.parameters.trace else None)
        for token, own, state in zip(tokens[:, 0].tolist(), probabilities, states, strict=True)
    ]


def _probabilities(
    weights: TokenWeights, totals: Tensor, tokens: Tensor, others: Tensor
) -> list[Probabilities | None]:
    found = weights.of(torch.cat([tokens, others], -1)) / totals
    return [
        Probabilities(own[0], ids, own[1:])
        for own, ids in zip(found.tolist(), others.tolist(), strict=True)
    ]


def _inverse_cdf(weights: Tensor, numbers: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Find where each row's running sum exceeds a share of its total: the block, then the place.

    Args:
        weights: (rows, a multiple of ``BLOCK_TOKENS``) float32.
        numbers: the shares, in [0, 1).

    Returns:
        places (rows, 1) int64, and the sums of all weights (rows, 1) float64.
    """
    by_block = sums(weights)
    ends = by_block.cumsum(-1, dtype=torch.float64)
    total = ends[:, -1:].contiguous()
    target = torch.tensor(numbers, dtype=torch.float64)[:, None] * total
    block = _first_above(ends, target)
    start = ends.gather(-1, block) - by_block.gather(-1, block)
    places = ids_in(block)
    within = weights.gather(-1, places).cumsum(-1, dtype=torch.float64)
    return places.gather(-1, _first_above(within, target - start)), total


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """Find where running sums first exceed their target, or last rise if they never do.

    Args:
        sums: (rows, n) float64, contiguous.
        target: (rows, 1) float64; by rounding it may be as large as the total.
    """
    found = torch.searchsorted(sums, target, right=True)
    return torch.minimum(found, torch.searchsorted(sums, sums[:, -1:].contiguous()))
