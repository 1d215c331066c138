"""The table of sampling steps: their order, parameters, and the values at which they do nothing.

Both samplers, ``engine.sampling.torch_sampler`` and the compiled one, follow this table, and
``tests/unit/engine/sampling/test_filter_table.py`` tests both from it. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.sampling.uniform import XTC_COIN, uniform

Condition = Callable[[DecodingParameters, int], bool]  # of parameters and the vocabulary's size


def _never(parameters: DecodingParameters, vocabulary_size: int) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class SamplingStep:
    """One step from logits to probabilities.

    Attributes:
        name: of the step; for a filter of a named strategy, the strategy's name.
        order: steps are applied in ascending order; a named strategy applies one filter at most,
            the strategy ``custom`` all of them.
        parameter: the field of ``DecodingParameters`` that controls it.
        is_identity: whether it leaves every score as it is.
        is_greedy: whether it leaves only the likeliest token, so that no number is drawn.
        kernel_code: the value of ``Strategy`` in ``interface.h``; ``None`` for a step that no
            strategy is named after.
    """

    name: str
    order: int
    parameter: str
    is_identity: Condition
    is_greedy: Condition = _never
    kernel_code: int | None = None


STEPS = (
    SamplingStep("logit_bias", 0, "logit_bias", is_identity=lambda p, _: not p.logit_bias),
    SamplingStep(
        "repetition_penalty",
        1,
        "repetition_penalty",
        is_identity=lambda p, _: p.repetition_penalty == 1.0,
    ),
    SamplingStep(
        "frequency_penalty",
        2,
        "frequency_penalty",
        is_identity=lambda p, _: p.frequency_penalty == 0.0,
    ),
    SamplingStep(
        "presence_penalty",
        2,
        "presence_penalty",
        is_identity=lambda p, _: p.presence_penalty == 0.0,
    ),
    SamplingStep("dry", 3, "dry_multiplier", is_identity=lambda p, _: p.dry_multiplier == 0.0),
    SamplingStep("top_n_sigma", 4, "top_n_sigma", is_identity=lambda p, _: p.top_n_sigma == 0.0),
    SamplingStep(
        "temperature",
        5,
        "temperature",
        is_identity=lambda p, _: p.temperature == 1.0,
        is_greedy=lambda p, _: p.temperature == 0.0,
    ),
    SamplingStep(
        "top_k",
        6,
        "top_k",
        is_identity=lambda p, size: p.top_k == 0 or p.top_k >= size,
        is_greedy=lambda p, _: p.top_k == 1,
        kernel_code=2,
    ),
    SamplingStep("top_p", 7, "top_p", is_identity=lambda p, _: p.top_p >= 1.0, kernel_code=3),
    SamplingStep("min_p", 8, "min_p", is_identity=lambda p, _: p.min_p <= 0.0, kernel_code=4),
    SamplingStep(
        "typical", 9, "typical_p", is_identity=lambda p, _: p.typical_p >= 1.0, kernel_code=5
    ),
    SamplingStep("xtc", 10, "xtc_probability", is_identity=lambda p, _: p.xtc_probability == 0.0),
)
FILTERS = {step.name: step for step in STEPS if step.kernel_code is not None}
_TEMPERATURE = next(step for step in STEPS if step.name == "temperature")
_GREEDY, _SAMPLING, _CUSTOM = 0, 1, 6  # of Strategy in interface.h


def is_greedy(parameters: DecodingParameters) -> bool:
    """Whether the likeliest token is always taken, whatever the seed."""
    if parameters.strategy == "greedy" or _TEMPERATURE.is_greedy(parameters, 0):
        return True
    return any(step.is_greedy(parameters, 0) for step in _filters(parameters))


def filters_of(parameters: DecodingParameters, vocabulary_size: int) -> tuple[str, ...]:
    """The names of the filters that a sequence needs, in their order; XTC is not among them."""
    return tuple(
        step.name
        for step in _filters(parameters)
        if not step.is_identity(parameters, vocabulary_size)
    )


def excludes_top(state: SamplingState) -> bool:
    """Whether XTC applies to a token: its coin is a number of its own, by seed and position."""
    chance = state.parameters.xtc_probability
    return chance > 0.0 and uniform(state.parameters.seed, state.position, XTC_COIN) < chance


def kernel_code(parameters: DecodingParameters) -> int:
    """The value of ``Strategy`` in ``interface.h`` for a sequence."""
    if is_greedy(parameters):
        return _GREEDY
    if parameters.strategy == "custom":
        return _CUSTOM
    own = FILTERS.get(parameters.strategy)
    return _SAMPLING if own is None or own.kernel_code is None else own.kernel_code


def _filters(parameters: DecodingParameters) -> tuple[SamplingStep, ...]:
    if parameters.strategy == "custom":
        return tuple(FILTERS.values())
    own = FILTERS.get(parameters.strategy)
    return () if own is None else (own,)
