"""The table of sampling steps: their order, parameters, and the values at which they do nothing.

Both samplers, ``engine.sampling.torch_sampler`` and the compiled one, follow this table, and
``tests/unit/engine/sampling/test_filter_table.py`` tests both from it. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textmill.core.strategies import DecodingParameters

Condition = Callable[[DecodingParameters, int], bool]  # of parameters and the vocabulary's size


def _never(parameters: DecodingParameters, vocabulary_size: int) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class SamplingStep:
    """One step from logits to probabilities.

    Attributes:
        name: of the step; for a filter, of the strategy that applies it.
        order: steps are applied in ascending order; a strategy applies one filter at most.
        parameter: the field of ``DecodingParameters`` that controls it.
        is_identity: whether it leaves every score as it is.
        is_greedy: whether it leaves only the likeliest token, so that no number is drawn.
        kernel_code: the value of ``Strategy`` in ``interface.h``; ``None`` for a step of all
            strategies.
    """

    name: str
    order: int
    parameter: str
    is_identity: Condition
    is_greedy: Condition = _never
    kernel_code: int | None = None


STEPS = (
    SamplingStep(
        "repetition_penalty",
        0,
        "repetition_penalty",
        is_identity=lambda p, _: p.repetition_penalty == 1.0,
    ),
    SamplingStep(
        "temperature",
        1,
        "temperature",
        is_identity=lambda p, _: p.temperature == 1.0,
        is_greedy=lambda p, _: p.temperature == 0.0,
    ),
    SamplingStep(
        "top_k",
        2,
        "top_k",
        is_identity=lambda p, size: p.top_k >= size,
        is_greedy=lambda p, _: p.top_k == 1,
        kernel_code=2,
    ),
    SamplingStep("top_p", 2, "top_p", is_identity=lambda p, _: p.top_p >= 1.0, kernel_code=3),
    SamplingStep("min_p", 2, "min_p", is_identity=lambda p, _: p.min_p <= 0.0, kernel_code=4),
    SamplingStep(
        "typical", 2, "typical_p", is_identity=lambda p, _: p.typical_p >= 1.0, kernel_code=5
    ),
)
FILTERS = {step.name: step for step in STEPS if step.kernel_code is not None}
_TEMPERATURE = next(step for step in STEPS if step.name == "temperature")
_GREEDY, _SAMPLING = 0, 1  # of Strategy in interface.h


def is_greedy(parameters: DecodingParameters) -> bool:
    """Whether the likeliest token is always taken, whatever the seed."""
    if parameters.strategy == "greedy" or _TEMPERATURE.is_greedy(parameters, 0):
        return True
    own = FILTERS.get(parameters.strategy)
    return own is not None and own.is_greedy(parameters, 0)


def filter_of(parameters: DecodingParameters, vocabulary_size: int) -> str:
    """The name of the filter that a sequence needs; empty if none would remove a token."""
    own = FILTERS.get(parameters.strategy)
    return "" if own is None or own.is_identity(parameters, vocabulary_size) else own.name


def kernel_code(parameters: DecodingParameters) -> int:
    """The value of ``Strategy`` in ``interface.h`` for a sequence."""
    if is_greedy(parameters):
        return _GREEDY
    own = FILTERS.get(parameters.strategy)
    return _SAMPLING if own is None or own.kernel_code is None else own.kernel_code
