"""The decoding strategies: names, descriptions, parameters and their ranges.

Request validation, ``GET /strategies``, the web form and the worker read this table. Knows nothing
of how a strategy is computed; that is ``engine.sampling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MAX_SEED = 2**63 - 1
# Random seeds are smaller than this, because JavaScript's numbers are exact only up to 2^53.
DRAWN_SEEDS = 2**53
MAX_STOP_STRINGS = 8
MAX_STOP_CHARACTERS = 64
DEFAULT_STRATEGY = "greedy"
DETERMINISTIC_STRATEGIES = frozenset({"greedy", "beam"})

StrategyName = Literal["greedy", "sampling", "top_k", "top_p", "min_p", "typical", "beam"]


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One tunable number of a strategy.

    Attributes:
        name: field name in requests.
        type: ``"number"`` or ``"integer"``, as in JSON Schema.
        default: value if a request omits the parameter.
        minimum: smallest valid value.
        maximum: largest valid value; ``None`` if the model limits it (vocabulary, context).
        exclusive_minimum: whether ``minimum`` itself is invalid.
        title: label in the web form.
        description: one sentence for visitors.
    """

    name: str
    type: Literal["number", "integer"]
    default: float | int
    minimum: float | int
    maximum: float | int | None
    title: str
    description: str
    exclusive_minimum: bool = False


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """One decoding strategy, as the API and the pages present it."""

    name: StrategyName
    title: str
    description: str
    parameters: tuple[ParameterSpec, ...]

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of this strategy's own parameters, without the common ones."""
        return frozenset(parameter.name for parameter in self.parameters)

    @property
    def is_random(self) -> bool:
        """Whether tokens are drawn, so that the seed matters."""
        return self.name not in DETERMINISTIC_STRATEGIES


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
    stop: tuple[str, ...] = ()
    trace: bool = False


def _temperature(default: float) -> ParameterSpec:
    return ParameterSpec(
        name="temperature",
        type="number",
        default=default,
        minimum=0.0,
        maximum=2.0,
        title="Temperature",
        description="Below 1, likely tokens gain; above 1, unlikely ones gain. 0 is greedy.",
    )


_REPETITION_PENALTY = ParameterSpec(
    name="repetition_penalty",
    type="number",
    default=1.0,
    minimum=1.0,
    maximum=2.0,
    title="Repetition penalty",
    description="Above 1, tokens that already occur in the text become less likely.",
)

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
        parameters=(_REPETITION_PENALTY,),
    ),
    StrategySpec(
        name="sampling",
        title="Sampling",
        description="Generic sampling: draws among all tokens by their probabilities.",
        parameters=(_temperature(0.7), _REPETITION_PENALTY),
    ),
    StrategySpec(
        name="top_k",
        title="Top-k",
        description="Draws among the k likeliest tokens (the original demo called this “TOP-P”).",
        parameters=(
            _temperature(0.5),
            ParameterSpec(
                name="top_k",
                type="integer",
                default=10,
                minimum=1,
                maximum=None,
                title="k",
                description="How many of the likeliest tokens may be drawn.",
            ),
            _REPETITION_PENALTY,
        ),
    ),
    StrategySpec(
        name="top_p",
        title="Nucleus (top-p)",
        description="Draws from the smallest set of tokens whose probabilities add up to p.",
        parameters=(
            _temperature(1.0),
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
            _REPETITION_PENALTY,
        ),
    ),
    StrategySpec(
        name="min_p",
        title="Min-p",
        description="Draws among tokens at least min-p times as likely as the likeliest.",
        parameters=(
            _temperature(1.0),
            ParameterSpec(
                name="min_p",
                type="number",
                default=0.05,
                minimum=0.0,
                maximum=1.0,
                title="min-p",
                description="The lowest probability, as a share of that of the likeliest token.",
            ),
            _REPETITION_PENALTY,
        ),
    ),
    StrategySpec(
        name="typical",
        title="Typical",
        description="Locally typical sampling: draws tokens about as surprising as expected.",
        parameters=(
            _temperature(1.0),
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
            _REPETITION_PENALTY,
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
)

STRATEGIES_BY_NAME: dict[str, StrategySpec] = {spec.name: spec for spec in STRATEGIES}


def decoding_parameters(
    strategy: str, parameters: Mapping[str, Any], *, trace: bool
) -> DecodingParameters:
    """Convert the stored parameters of a job to the engine's."""
    values = dict(parameters) | {"stop": tuple(parameters.get("stop", ())), "trace": trace}
    return DecodingParameters(strategy=strategy, **values)  # type: ignore[arg-type]


def is_deterministic(strategy: str, temperature: object, top_k: object) -> bool:
    """Whether these parameters give the same text with any seed.

    Args:
        strategy: its name.
        temperature: 0 is greedy; a strategy without one passes ``None``.
        top_k: 1 is greedy; a strategy without one passes ``None``.
    """
    return strategy in DETERMINISTIC_STRATEGIES or temperature == 0 or top_k == 1
