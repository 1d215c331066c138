"""From logits to tokens, all rows of a batch, each by its own parameters.

logits → repetition penalty → temperature → the strategy's cut → one draw by the inverse of the
distribution function in the order of ids. A row is computed by itself in every step, so its token
cannot depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.strategies import DecodingParameters
from worker.decoding.cuts import kept
from worker.decoding.uniform import uniform


@dataclass(frozen=True, slots=True)
class RowState:
    """What choosing a row's next token needs beside its logits."""

    parameters: DecodingParameters
    ids: Sequence[int]  # the prompt and what was written
    position: int  # of the new token, from 0 at the start of the continuation


@dataclass(frozen=True, slots=True)
class Choice:
    """A row's next token; ``weights`` are what it was drawn by, for the trace, not normalised."""

    token: int
    weights: Tensor | None  # (vocabulary,) float32; None where the likeliest was simply taken


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
        logits: (rows, vocabulary) float32.
        rows: the rows' parameters and texts, in the same order.
    """
    choices = []
    for row, row_logits in zip(rows, logits, strict=True):
        scores = penalised(row_logits, row)
        if is_greedy(row.parameters):
            choices.append(Choice(int(scores.argmax()), None))  # the first of equals
        else:
            choices.append(_draw(scores, row))
    return choices


def penalised(logits: Tensor, row: RowState) -> Tensor:
    """The repetition penalty of CTRL (Keskar et al., 2019), over prompt and text.

    Args:
        logits: (vocabulary,) float32; left as they are.
        row: whose tokens are penalised.
    """
    penalty = row.parameters.repetition_penalty
    if penalty == 1.0:
        return logits
    seen = torch.tensor(sorted(set(row.ids)))
    scores = logits[seen]
    changed = logits.clone()
    changed[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return changed


def draw_weights(scores: Tensor, parameters: DecodingParameters) -> Tensor:
    """What the tokens are drawn by: probabilities, zero outside the cut; (vocabulary,) float32."""
    # Subtracting the maximum first keeps a temperature near zero from overflowing.
    probabilities = torch.softmax((scores - scores.max()) / parameters.temperature, -1)
    keep = kept(probabilities, parameters)
    return probabilities if keep is None else torch.where(keep, probabilities, 0.0)


def _draw(scores: Tensor, row: RowState) -> Choice:
    weights = draw_weights(scores, row.parameters)
    sums = weights.double().cumsum(-1)
    # Dividing by the sum would change the arithmetic of a cut that cuts nothing.
    target = uniform(row.parameters.seed, row.position) * sums[-1]
    token = min(int(torch.searchsorted(sums, target, right=True)), sums.shape[-1] - 1)
    if weights[token] == 0.0:  # rounding at the very end of the sums
        token = int(weights.nonzero()[-1])
    return Choice(token, weights)
