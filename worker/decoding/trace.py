"""Why a token was chosen: its likelihood, its rank, what the cut left it, what else there was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worker.decoding.records import Alternative, TokenTrace
from worker.decoding.sampling import Choice

NUM_ALTERNATIVES = 20


def trace_token(logits: Tensor, choice: Choice, text_of: Callable[[int], str]) -> TokenTrace:
    """Describe a choice.

    Args:
        logits: (vocabulary,) float32, as the model gave them.
        choice: what was taken.
        text_of: a token's text.
    """
    logprobs = torch.log_softmax(logits, -1)
    value = logits[choice.token]
    lower_ties = (logits[: choice.token] == value).sum()
    top = torch.topk(logprobs, min(NUM_ALTERNATIVES, logprobs.shape[-1]))
    total = float(choice.weights.double().sum()) if choice.weights is not None else 1.0

    def probability(token: int) -> float:
        if choice.weights is None:
            return float(token == choice.token)
        return float(choice.weights[token]) / total

    return TokenTrace(
        id=choice.token,
        text=text_of(choice.token),
        logprob=float(logprobs[choice.token]),
        rank=int((logits > value).sum() + lower_ties) + 1,
        probability=probability(choice.token),
        entropy=float(-(logprobs.exp() * logprobs).nan_to_num().sum()),
        alternatives=[
            Alternative(token, text_of(token), logprob, probability(token))
            for token, logprob in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
    )
