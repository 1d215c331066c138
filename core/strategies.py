"""The decoding strategies: names, descriptions, parameters and their ranges.

Request validation, ``GET /strategies``, the web form and the worker read this table. Knows nothing
of how a strategy is computed; that is ``engine.sampling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textmill.core.custom_strategy import CUSTOM
from textmill.core.strategy_specs import (
    DETERMINISTIC_STRATEGIES,
    REPETITION_PENALTY,
    ParameterSpec,
    StrategyName,
    StrategySpec,
    temperature,
)

MAX_SEED = 2**63 - 1
# Random seeds are smaller than this, because JavaScript's numbers are exact only up to 2^53.
DRAWN_SEEDS = 2**53
MAX_STOP_STRINGS = 8
MAX_STOP_CHARACTERS = 64
DEFAULT_STRATEGY = "greedy"


@dataclass(frozen=True, slots=True)
class DecodingParameters:
    """The parameters with which the engine decodes one job.

    A parameter that the strategy does not use has its neutral value.
    """

    strategy: StrategyName
    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0  # 0: not limited
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, ascending
    top_n_sigma: float = 0.0  # 0: no cut
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0  # 0: no penalty
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0  # tokens; 0: all
    dry_sequence_breakers: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    trace: bool = False


MAX_NEW_TOKENS = ParameterSpec(
    name="max_new_tokens",
    type="integer",
    default=64,
    minimum=1,
    maximum=None,
    title="Length",
    description="The maximum number of tokens to generate.",
)

STRATEGIES: tuple[StrategySpec, ...] = (
    StrategySpec(
        name="greedy",
        title="Greedy",
        description="Always takes the likeliest token; the same prompt gives the same text.",
        parameters=(REPETITION_PENALTY,),
    ),
    StrategySpec(
        name="sampling",
        title="Sampling",
        description="Generic sampling: draws among all tokens by their probabilities.",
        parameters=(temperature(0.7), REPETITION_PENALTY),
    ),
    StrategySpec(
        name="top_k",
        title="Top-k",
        description="Draws among the k likeliest tokens (the original demo called this “TOP-P”).",
        parameters=(
            temperature(0.5),
            ParameterSpec(
                name="top_k",
                type="integer",
                default=10,
                minimum=1,
                maximum=None,
                title="k",
                description="How many of the likeliest tokens may be drawn.",
            ),
            REPETITION_PENALTY,
        ),
    ),
    StrategySpec(
        name="top_p",
        title="Nucleus (top-p)",
        description="Draws from the smallest set of tokens whose probabilities add up to p.",
        parameters=(
            temperature(1.0),
            ParameterSpec(
                name="top_p",
                type="number",
                default=0.9,
                minimum=0.0,
                maximum=1.0,
                exclusive_minimum=True,
                title="p",
                description="The probability that the set must reach.",
            ),
            REPETITION_PENALTY,
        ),
    ),
    StrategySpec(
        name="min_p",
        title="Min-p",
        description="Draws among tokens at least min-p times as likely as the likeliest.",
        parameters=(
            temperature(1.0),
            ParameterSpec(
                name="min_p",
                type="number",
                default=0.05,
                minimum=0.0,
                maximum=1.0,
                title="min-p",
                description="The lowest probability, as a share of that of the likeliest token.",
            ),
            REPETITION_PENALTY,
        ),
    ),
    StrategySpec(
        name="typical",
        title="Typical",
        description="Locally typical sampling: draws tokens about as surprising as expected.",
        parameters=(
            temperature(1.0),
            ParameterSpec(
                name="typical_p",
                type="number",
                default=0.95,
                minimum=0.0,
                maximum=1.0,
                exclusive_minimum=True,
                title="Typical mass",
                description="The probability that the typical set must reach.",
            ),
            REPETITION_PENALTY,
        ),
    ),
    StrategySpec(
        name="beam",
        title="Beam search",
        description="Follows several likely texts at once and keeps the best one as a whole.",
        parameters=(
            ParameterSpec(
                name="num_beams",
                type="integer",
                default=4,
                minimum=2,
                maximum=8,
                title="Beams",
                description="The number of candidate texts.",
            ),
            ParameterSpec(
                name="length_penalty",
                type="number",
                default=1.0,
                minimum=-2.0,
                maximum=2.0,
                title="Length penalty",
                description="Above 0, longer texts are preferred; below 0, shorter ones.",
            ),
        ),
    ),
    CUSTOM,
)

STRATEGIES_BY_NAME: dict[str, StrategySpec] = {spec.name: spec for spec in STRATEGIES}


def decoding_parameters(
    strategy: str, parameters: Mapping[str, Any], *, trace: bool
) -> DecodingParameters:
    """Convert the stored parameters of a job to the engine's."""
    values = dict(parameters) | {"stop": tuple(parameters.get("stop", ())), "trace": trace}
    if "logit_bias" in values:  # JSON's names are strings
        biases = {int(token): float(bias) for token, bias in values["logit_bias"].items()}
        values["logit_bias"] = tuple(sorted(biases.items()))
    if "dry_sequence_breakers" in values:
        values["dry_sequence_breakers"] = tuple(values["dry_sequence_breakers"])
    return DecodingParameters(strategy=strategy, **values)  # type: ignore[arg-type]


def is_deterministic(strategy: str, temperature: object, top_k: object) -> bool:
    """Whether these parameters give the same text with any seed.

    Args:
        strategy: its name.
        temperature: 0 is greedy; a strategy without one passes ``None``.
        top_k: 1 is greedy; a strategy without one passes ``None``.
    """
    return strategy in DETERMINISTIC_STRATEGIES or temperature == 0 or top_k == 1
