"""Why a token was chosen: its likelihood, its rank, what the cut left it, what else there was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from textmill.engine.sampling.blocks import chunks, largest, sums, taken
from textmill.engine.sampling.token_records import NUM_ALTERNATIVES, Alternative, TokenTrace
from textmill.engine.sampling.torch_sampler import Choice


def trace_token(logits: Tensor, choice: Choice, text_of: Callable[[int], str]) -> TokenTrace:
    """Describe one choice; logits: (vocabulary,) float32, as the model gave them."""
    return trace_tokens(logits[None], [choice], text_of)[0]


def trace_tokens(
    logits: Tensor, choices: Sequence[Choice], text_of: Callable[[int], str]
) -> list[TokenTrace]:
    """Describe choices.

    Args:
        logits: (rows, vocabulary) float32, as the model gave them; left as they are.
        choices: what was taken, one a row.
        text_of: a token's text.
    """
    traces: list[TokenTrace] = []
    for part in chunks(range(len(choices)), logits.shape[-1]):
        own = taken(logits, part)
        traces += _described(own, logits.shape[-1], [choices[i] for i in part], text_of)
    return traces


def _described(
    logits: Tensor, vocabulary_size: int, choices: list[Choice], text_of: Callable[[int], str]
) -> list[TokenTrace]:
    """Describe choices from logits filled up to whole blocks, which are overwritten."""
    tokens = torch.tensor([choice.token for choice in choices])[:, None]
    top, likeliest = largest(logits, min(NUM_ALTERNATIVES, vocabulary_size))
    others = [
        choice.odds.ids if choice.odds else ids
        for choice, ids in zip(choices, likeliest.tolist(), strict=True)
    ]
    ranks = _ranks(logits, tokens, top)
    logits -= top[:, :1]
    wanted = torch.cat([tokens, torch.tensor(others)], -1)
    relative = logits.gather(-1, wanted).tolist()
    probabilities = torch.softmax(logits, -1)
    # The likeliest has logit 0. An impossible token adds nothing to the entropy.
    logits.clamp_(min=torch.finfo(torch.float32).min).mul_(probabilities)
    means = sums(logits).sum(-1).tolist()
    log_totals = [-math.log(most) for most in probabilities.amax(-1).tolist()]
    traces = []
    for choice, ids, rank, values, mean, log_total in zip(
        choices, others, ranks, relative, means, log_totals, strict=True
    ):
        logprobs = [value - log_total for value in values]
        if choice.odds is None:
            probability, after_cut = 1.0, [float(token == choice.token) for token in ids]
        else:
            probability, after_cut = choice.odds.probability, choice.odds.probabilities
        traces.append(
            TokenTrace(
                id=choice.token,
                text=text_of(choice.token),
                logprob=logprobs[0],
                rank=rank,
                probability=probability,
                entropy=log_total - mean,
                alternatives=[
                    Alternative(token, text_of(token), logprob, share)
                    for token, logprob, share in zip(ids, logprobs[1:], after_cut, strict=True)
                ],
            )
        )
    return traces


def _ranks(logits: Tensor, tokens: Tensor, best: Tensor) -> list[int]:
    """Places of tokens by their logits, from 1, of equals the lower ids first.

    Args:
        logits: (rows, width) float32.
        tokens: (rows, 1) int64.
        best: (rows, n) float32, each row's largest logits; most tokens are among them.
    """
    values = logits.gather(-1, tokens)
    ranks: list[int] = ((best > values).sum(-1) + 1).tolist()
    is_among = (values > best[:, -1:]) & ((best == values).sum(-1, keepdim=True) == 1)
    for row in (~is_among[:, 0]).nonzero()[:, 0].tolist():
        value, token = values[row], int(tokens[row])
        num_above = int((logits[row] > value).sum())
        ranks[row] = num_above + int((logits[row, :token] == value).sum()) + 1
    return ranks
