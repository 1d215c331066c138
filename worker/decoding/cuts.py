"""The strategies' cuts: which tokens may be drawn. Ties go to the lower id, always.

Semantics are those of transformers' logits processors. A cut that keeps everything leaves no trace
in the arithmetic that follows, which is what makes the identities of the contract exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.strategies import DecodingParameters

# Most nuclei are smaller than this; only when one is not is the whole row sorted.
NUCLEUS_GUESS_TOKENS = 1024


def kept(probabilities: Tensor, parameters: DecodingParameters) -> Tensor | None:
    """The tokens that a strategy may draw; ``None`` for all of them.

    Args:
        probabilities: (vocabulary,) float32, after the temperature.
        parameters: whose strategy and cut apply.

    Returns:
        (vocabulary,) bool, at least one of them true.
    """
    strategy, size = parameters.strategy, probabilities.shape[-1]
    if strategy == "top_k" and parameters.top_k < size:
        return _first(probabilities, parameters.top_k)
    if strategy == "top_p" and parameters.top_p < 1.0:
        return _smallest_set(probabilities, probabilities, parameters.top_p)
    if strategy == "min_p" and parameters.min_p > 0.0:
        return probabilities >= parameters.min_p * probabilities.max()
    if strategy == "typical" and parameters.typical_p < 1.0:
        return _typical(probabilities, parameters.typical_p)
    return None


def _typical(probabilities: Tensor, mass: float) -> Tensor:
    """Tokens about as surprising as expected (Meister et al., "Locally typical sampling", 2022)."""
    logs = probabilities.log()
    surprise = torch.where(probabilities > 0, -logs, 0.0)
    entropy = (probabilities * surprise).sum()
    # What cannot be drawn is infinitely far from typical.
    closeness = torch.where(probabilities > 0, -(-logs - entropy).abs(), -torch.inf)
    return _smallest_set(closeness, probabilities, mass)


def _smallest_set(order: Tensor, probabilities: Tensor, mass: float) -> Tensor:
    """The first tokens by ``order`` that together hold ``mass``."""
    size = order.shape[-1]
    for guess in (min(NUCLEUS_GUESS_TOKENS, size), size):
        ids = torch.topk(order, guess).indices
        # topk leaves ties in any order: sums within a tie differ, its members' count does not.
        sums = probabilities[ids].double().cumsum(-1)
        if guess == size or float(sums[-1]) >= mass:
            break
    count = min(int((sums < mass).sum()) + 1, size)
    return _first(order, count)


def _first(order: Tensor, count: int) -> Tensor:
    """The first ``count`` tokens by ``order``, of equals the lower ids."""
    last = torch.topk(order, count).values[-1]
    above = order > last
    ties = order == last
    wanted = count - above.sum()
    return above | (ties & (ties.cumsum(-1) <= wanted))
