"""What a strategy and its parameters are described by, and the parameters that several share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

DETERMINISTIC_STRATEGIES = frozenset({"greedy", "beam"})

StrategyName = Literal["greedy", "sampling", "top_k", "top_p", "min_p", "typical", "beam", "custom"]


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One tunable number of a strategy.

    Attributes:
        name: field name in requests.
        type: ``"number"`` or ``"integer"``, as in JSON Schema.
        default: value if a request omits the parameter.
        minimum: smallest valid value.
        maximum: largest valid value; ``None`` if the model limits it (vocabulary, context).
        title: label in the web form.
        description: one sentence for visitors.
        exclusive_minimum: whether ``minimum`` itself is invalid.
        is_folded: whether the web form shows it on request only.
    """

    name: str
    type: Literal["number", "integer"]
    default: float | int
    minimum: float | int
    maximum: float | int | None
    title: str
    description: str
    exclusive_minimum: bool = False
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """A parameter that is a list of strings or an object of numbers; the API alone has it.

    Attributes:
        name: field name in requests.
        type: ``"array"`` or ``"object"``, as in JSON Schema.
        default: value if a request omits the parameter.
        max_items: the largest number of entries.
        title: its name for visitors.
        description: one or two sentences for visitors.
    """

    name: str
    type: Literal["array", "object"]
    default: tuple[str, ...]
    max_items: int
    title: str
    description: str

    def default_json(self) -> list[str] | dict[str, float]:
        """The default as a JSON value."""
        return list(self.default) if self.type == "array" else {}


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """One decoding strategy, as the API and the pages present it."""

    name: StrategyName
    title: str
    description: str
    parameters: tuple[ParameterSpec, ...]
    collections: tuple[CollectionSpec, ...] = ()

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of this strategy's own parameters, without the common ones."""
        own = (parameter.name for parameter in self.parameters)
        return frozenset(own).union(collection.name for collection in self.collections)

    def defaults(self) -> dict[str, Any]:
        """The defaults of this strategy's own parameters, as JSON values."""
        numbers: dict[str, Any] = {own.name: own.default for own in self.parameters}
        return numbers | {own.name: own.default_json() for own in self.collections}

    @property
    def is_random(self) -> bool:
        """Whether tokens are drawn, so that the seed matters."""
        return self.name not in DETERMINISTIC_STRATEGIES


def temperature(default: float) -> ParameterSpec:
    """The parameter of all strategies that draw tokens."""
    return ParameterSpec(
        name="temperature",
        type="number",
        default=default,
        minimum=0.0,
        maximum=2.0,
        title="Temperature",
        description="Below 1, likely tokens gain; above 1, unlikely ones gain. 0 is greedy.",
    )


REPETITION_PENALTY = ParameterSpec(
    name="repetition_penalty",
    type="number",
    default=1.0,
    minimum=1.0,
    maximum=2.0,
    title="Repetition penalty",
    description="Above 1, tokens that already occur in the text become less likely.",
    is_folded=True,
)
