"""Traces in PyTorch: the probability, the rank and the alternatives of each sampled token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from textmill.engine.sampling.blocks import chunks, largest, padded_rows, sums
from textmill.engine.sampling.token_records import NUM_ALTERNATIVES, Alternative, TokenTrace
from textmill.engine.sampling.torch_sampler import DrawnToken

TextOf = Callable[[int], str]


def trace_token(logits: Tensor, token: DrawnToken, text_of: TextOf) -> TokenTrace:
    """Trace one token; logits: (vocabulary,) float32, as the model computed them."""
    return trace_tokens(logits[None], [token], text_of)[0]


def trace_tokens(logits: Tensor, tokens: Sequence[DrawnToken], text_of: TextOf) -> list[TokenTrace]:
    """Trace the sampled tokens of a batch.

    Args:
        logits: (rows, vocabulary) float32, as the model computed them; not modified.
        tokens: the token of each row.
        text_of: returns a token's text.
    """
    traces: list[TokenTrace] = []
    for part in chunks(range(len(tokens)), logits.shape[-1]):
        own = padded_rows(logits, part)
        traces += _traces(own, logits.shape[-1], [tokens[i] for i in part], text_of)
    return traces


def _traces(
    logits: Tensor, vocabulary_size: int, tokens: list[DrawnToken], text_of: TextOf
) -> list[TokenTrace]:
    """Trace tokens from logits that are padded to whole blocks, which are overwritten."""
    ids = torch.tensor([token.id for token in tokens])[:, None]
    top, likeliest = largest(logits, min(NUM_ALTERNATIVES, vocabulary_size))
    others = [
        token.probabilities.ids if token.probabilities else likely
        for token, likely in zip(tokens, likeliest.tolist(), strict=True)
    ]
    ranks = _ranks(logits, ids, top)
    logits -= top[:, :1]
    relative = logits.gather(-1, torch.cat([ids, torch.tensor(others)], -1)).tolist()
    probabilities = torch.softmax(logits, -1)
    # The likeliest token has logit 0. An impossible token must add 0 to the entropy, not NaN.
    logits.clamp_(min=torch.finfo(torch.float32).min).mul_(probabilities)
    means = sums(logits).sum(-1).tolist()
    log_totals = [-math.log(most) for most in probabilities.amax(-1).tolist()]
    columns = zip(tokens, others, ranks, relative, means, log_totals, strict=True)
    return [
        _trace(
            token, alternatives, rank, [v - log_total for v in values], log_total - mean, text_of
        )
        for token, alternatives, rank, values, mean, log_total in columns
    ]


def _trace(
    token: DrawnToken,
    alternatives: list[int],
    rank: int,
    logprobs: list[float],  # of the token, then of the alternatives
    entropy: float,
    text_of: TextOf,
) -> TokenTrace:
    if token.probabilities is None:
        probability, filtered = 1.0, [float(other == token.id) for other in alternatives]
    else:
        probability = token.probabilities.probability
        filtered = token.probabilities.probabilities
    return TokenTrace(
        id=token.id,
        text=text_of(token.id),
        logprob=logprobs[0],
        rank=rank,
        probability=probability,
        entropy=entropy,
        alternatives=[
            Alternative(other, text_of(other), logprob, after_filter)
            for other, logprob, after_filter in zip(
                alternatives, logprobs[1:], filtered, strict=True
            )
        ],
    )


def _ranks(logits: Tensor, tokens: Tensor, best: Tensor) -> list[int]:
    """The ranks of tokens by their logits, from 1; of equals, lower ids have lower ranks.

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
