"""What is done to scores before the temperature, in PyTorch: biases, penalties and top-nσ.

``engine/kernels/penalties.cpp`` does the same. The order, and the reasons for it, are in
``docs/decisions/0027-combined-filters.md``.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from textmill.engine.sampling.blocks import sums
from textmill.engine.sampling.repetitions import repetition_penalties
from textmill.engine.sampling.token_records import SamplingState


def penalize(scores: Tensor, states: Sequence[SamplingState]) -> None:
    """Apply biases and penalties in place.

    Args:
        scores: (rows, width) float32.
        states: of the rows.
    """
    for row, state in zip(scores, states, strict=True):
        if state.rules is not None and state.rules.bias_ids:
            biases = torch.tensor(state.rules.biases, dtype=torch.float32)
            row[torch.tensor(state.rules.bias_ids)] += biases
    _penalize_seen(scores, states)
    for row, state in zip(scores, states, strict=True):
        own = state.parameters
        if own.frequency_penalty or own.presence_penalty:
            _penalize_counts(row, state)
        if own.dry_multiplier > 0.0:
            breakers = () if state.rules is None else state.rules.breaker_ids
            _subtract(row, repetition_penalties(state.ids, breakers, own))


def spreads(
    scores: Tensor, rows: Sequence[int], states: Sequence[SamplingState]
) -> Sequence[float]:
    """The distance from the highest score within which top-nσ keeps tokens.

    Tang et al., "Top-nσ: not all logits are you need" (2024). The deviation is that of the model's
    own logits, before biases and penalties; impossible tokens do not count.

    Args:
        scores: (all, width) float32, before ``penalize``.
        rows: indices of the rows with this filter.
        states: of all rows.
    """
    if not rows:
        return ()
    own = scores[list(rows)]
    is_finite = own > -torch.inf
    distances = (own - own.amax(-1, keepdim=True)).masked_fill_(~is_finite, 0.0)
    counts = is_finite.sum(-1, keepdim=True)
    means = (_total(distances) / counts).float()
    squares = (distances - means).square_().masked_fill_(~is_finite, 0.0)
    deviations: list[float] = (_total(squares) / counts).sqrt()[:, 0].tolist()
    return [
        states[row].parameters.top_n_sigma * deviation
        for row, deviation in zip(rows, deviations, strict=True)
    ]


def drop_below(scores: Tensor, rows: Sequence[int], distances: Sequence[float]) -> None:
    """Make tokens impossible that are further below the highest score, in place.

    Args:
        scores: (all, width) float32.
        rows: indices of the rows with this filter.
        distances: of each of ``rows``.
    """
    if not rows:
        return
    own = scores[list(rows)]
    bounds = own.amax(-1, keepdim=True).double() - torch.tensor(distances)[:, None].double()
    scores[list(rows)] = own.masked_fill(own < bounds.float(), -torch.inf)


def _total(values: Tensor) -> Tensor:
    return sums(values).cumsum(-1, dtype=torch.float64)[:, -1:]


def _penalize_counts(row: Tensor, state: SamplingState) -> None:
    """OpenAI's frequency and presence penalties, over the completion.

    "Frequency and presence penalties" in the API reference: a token's logit loses its count times
    the one, and the other if the count is not zero.
    """
    counts = Counter(state.generated)
    if not counts:
        return
    numbers = torch.tensor(list(counts.values()), dtype=torch.float32)
    own = state.parameters
    penalties = numbers * own.frequency_penalty + own.presence_penalty
    row[torch.tensor(list(counts))] -= penalties


def _subtract(row: Tensor, penalties: dict[int, float]) -> None:
    if penalties:
        numbers = torch.tensor(list(penalties.values()), dtype=torch.float32)
        row[torch.tensor(list(penalties))] -= numbers


def _penalize_seen(scores: Tensor, states: Sequence[SamplingState]) -> None:
    """The repetition penalty of CTRL (Keskar et al., 2019), over prompt and text, in place."""
    penalized = [i for i, s in enumerate(states) if s.parameters.repetition_penalty != 1.0]
    ids = array("q")  # ten times as fast as a tensor from a list
    for index in penalized:
        ids.extend(states[index].ids)
    if not ids:
        return
    counts = torch.tensor([len(states[i].ids) for i in penalized])
    penalties = torch.tensor([states[i].parameters.repetition_penalty for i in penalized])
    penalties = penalties.repeat_interleave(counts)
    places = (torch.tensor(penalized) * scores.shape[-1]).repeat_interleave(counts)
    places += torch.frombuffer(ids, dtype=torch.int64)
    values = scores.view(-1).index_select(0, places)
    # A token that occurs twice is written twice, with the same number.
    values = torch.where(values < 0, values * penalties, values / penalties)
    scores.view(-1).index_copy_(0, places, values)
