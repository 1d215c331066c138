"""Samples draft tokens among candidates as the sampler will sample the token.

The sampler draws a token where the running sum of probabilities, in the order of token ids, exceeds
a random number that seed and position give. So the guess may use the same number: at a place with
two likely tokens it picks the one that the sampler would, if the model had those probabilities.
"""

from __future__ import annotations

from textmill.engine.sampling.filter_table import is_greedy
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.sampling.uniform import uniform
from textmill.engine.speculation.proposer import Candidates, DraftToken, SampleDraft

MIN_TEMPERATURE = 0.1  # below it, the likeliest candidate has all the weight anyway


def draft_sampler_for(state: SamplingState) -> SampleDraft:
    """The choice for a sequence whose next token has that state."""
    parameters = state.parameters
    if is_greedy(parameters):
        return likeliest
    power = 1.0 / max(parameters.temperature, MIN_TEMPERATURE)

    def sample(candidates: Candidates, place: int) -> DraftToken:
        return sampled(candidates, uniform(parameters.seed, state.position + place), power)

    return sample


def likeliest(candidates: Candidates, place: int) -> DraftToken:
    """The first candidate, for greedy decoding."""
    return DraftToken(*candidates[0])


def sampled(candidates: Candidates, number: float, power: float) -> DraftToken:
    """Draw a candidate with a random number in [0, 1), in the order of token ids.

    Args:
        candidates: with their probabilities at temperature 1.
        number: the sampler's own.
        power: the reciprocal of the temperature.
    """
    weights = sorted((token, share**power) for token, share in candidates)
    total = sum(weight for _, weight in weights)
    missing = max(0.0, 1.0 - sum(share for _, share in candidates)) ** power
    target, sum_so_far = number * total, 0.0
    token, weight = weights[-1]
    for token, weight in weights:  # noqa: B007 - the last one where rounding exceeds the sum
        sum_so_far += weight
        if sum_so_far > target:
            break
    return DraftToken(token, weight / (total + missing))
