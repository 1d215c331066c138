"""From logits to tokens, all rows of a batch at once, each row by its own parameters.

logits → repetition penalty → temperature → the strategy's cut → one draw by inverse distribution
function over token ids. Every strategy draws in the same order with the same arithmetic, so a cut
that cuts nothing (k = vocabulary, p = 1, min-p = 0) gives the very token that plain sampling gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.strategies import DecodingParameters

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for a seed and a position, with 53 bits.

    SplitMix64 (Steele, Lea and Flood, 2014) as a counter-based generator: the seed chooses the
    stream, the position the place in it.
    """
    mixed = _mix((seed & _MASK) ^ 0x9E3779B97F4A7C15)
    return (_mix((mixed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def is_greedy(parameters: DecodingParameters) -> bool:
    """Whether the likeliest token is taken, whatever the seed."""
    return (
        parameters.strategy == "greedy"
        or parameters.temperature == 0.0
        or (parameters.strategy == "top_k" and parameters.top_k == 1)
    )


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Repetition penalty of CTRL (Keskar et al., 2019) over the tokens seen; (vocabulary,)."""
    scores = logits[seen]
    result = logits.clone()
    result[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return result


def cut_probabilities(logits: Tensor, parameters: DecodingParameters) -> Tensor:
    """Probabilities after temperature and the strategy's cut, renormalised; (vocabulary,) float64."""
    scaled = logits.double() / max(parameters.temperature, 1e-6)
    probabilities = torch.softmax(scaled, -1)
    keep = _kept(probabilities, parameters)
    if keep is None:
        return probabilities
    kept = torch.where(keep, probabilities, 0.0)
    return kept / kept.sum()


def _kept(probabilities: Tensor, parameters: DecodingParameters) -> Tensor | None:
    strategy = parameters.strategy
    size = probabilities.shape[-1]
    if strategy == "top_k" and parameters.top_k < size:
        _, ids = torch.sort(probabilities, descending=True, stable=True)
        return _only(ids[: parameters.top_k], size)
    if strategy == "top_p" and parameters.top_p < 1.0:
        return _smallest_set(probabilities, probabilities, parameters.top_p)
    if strategy == "min_p" and parameters.min_p > 0.0:
        return probabilities >= parameters.min_p * probabilities.max()
    if strategy == "typical" and parameters.typical_p < 1.0:
        logs = probabilities.clamp_min(1e-300).log()
        entropy = -(probabilities * logs).sum()
        return _smallest_set(-(logs + entropy).abs(), probabilities, parameters.typical_p)
    return None


def _smallest_set(order: Tensor, probabilities: Tensor, mass: float) -> Tensor:
    _, ids = torch.sort(order, descending=True, stable=True)
    sums = probabilities[ids].cumsum(-1)
    count = int((sums < mass).sum()) + 1
    return _only(ids[:count], probabilities.shape[-1])


def _only(ids: Tensor, size: int) -> Tensor:
    keep = torch.zeros(size, dtype=torch.bool)
    keep[ids] = True
    return keep


def draw(probabilities: Tensor, number: float) -> int:
    """The token at which the distribution function, in the order of ids, passes ``number``."""
    sums = probabilities.cumsum(-1)
    token = int(torch.searchsorted(sums, number * sums[-1], right=True))
    if token >= probabilities.shape[-1] or probabilities[token] == 0:  # rounding at the end
        token = int(probabilities.nonzero()[-1])
    return token


def choose(
    logits: Tensor, parameters: Sequence[DecodingParameters], seen: Sequence[list[int]],
    positions: Sequence[int],
) -> list[int]:
    """One token a row. logits: (rows, vocabulary) float32."""
    tokens = []
    for row, p in enumerate(parameters):
        scores = logits[row]
        if p.repetition_penalty != 1.0:
            scores = penalise(scores, torch.tensor(sorted(set(seen[row]))), p.repetition_penalty)
        if is_greedy(p):
            tokens.append(int(scores.argmax()))
        else:
            tokens.append(draw(cut_probabilities(scores, p), uniform(p.seed, positions[row])))
    return tokens
