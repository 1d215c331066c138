"""The table of strategies against the contract's."""

from __future__ import annotations

import pytest

from textmill.core.strategies import (
    MAX_NEW_TOKENS,
    STRATEGIES,
    STRATEGIES_BY_NAME,
    DecodingParameters,
    is_deterministic,
)

# (default, minimum, maximum, minimum excluded), from the contract's table.
CONTRACT: dict[str, dict[str, tuple[float, float, float | None, bool]]] = {
    "greedy": {},
    "sampling": {"temperature": (0.7, 0, 2, False)},
    "top_k": {"temperature": (0.5, 0, 2, False), "top_k": (10, 1, None, False)},
    "top_p": {"temperature": (1.0, 0, 2, False), "top_p": (0.9, 0, 1, True)},
    "min_p": {"temperature": (1.0, 0, 2, False), "min_p": (0.05, 0, 1, False)},
    "typical": {"temperature": (1.0, 0, 2, False), "typical_p": (0.95, 0, 1, True)},
    "beam": {"num_beams": (4, 2, 8, False), "length_penalty": (1.0, -2, 2, False)},
}
PENALTY = (1.0, 1, 2, False)


def test_the_strategies_are_those_of_the_contract_in_its_order() -> None:
    assert [spec.name for spec in STRATEGIES] == list(CONTRACT)
    assert list(STRATEGIES_BY_NAME) == list(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_the_parameters_are_those_of_the_contract(name: str) -> None:
    expected = dict(CONTRACT[name])
    if name != "beam":
        expected["repetition_penalty"] = PENALTY
    found = {
        p.name: (p.default, p.minimum, p.maximum, p.exclusive_minimum)
        for p in STRATEGIES_BY_NAME[name].parameters
    }
    assert found == expected


@pytest.mark.parametrize("spec", STRATEGIES, ids=lambda spec: spec.name)
def test_every_parameter_is_explained_and_its_default_lies_within_its_range(spec: object) -> None:
    assert spec.title  # type: ignore[attr-defined]
    assert spec.description.endswith(".")  # type: ignore[attr-defined]
    for parameter in spec.parameters:  # type: ignore[attr-defined]
        assert parameter.title
        assert parameter.description.endswith(".")
        assert parameter.minimum <= parameter.default
        assert parameter.maximum is None or parameter.default <= parameter.maximum
        assert isinstance(parameter.default, int) == (parameter.type == "integer")


def test_what_a_strategy_does_not_use_is_neutral() -> None:
    plain = DecodingParameters(strategy="greedy", max_new_tokens=1, seed=0)
    assert (plain.temperature, plain.top_k, plain.top_p, plain.min_p) == (1.0, 0, 1.0, 0.0)
    assert (plain.typical_p, plain.num_beams, plain.repetition_penalty) == (1.0, 1, 1.0)
    assert (plain.stop, plain.trace) == ((), False)


def test_the_default_length_is_64() -> None:
    assert (MAX_NEW_TOKENS.default, MAX_NEW_TOKENS.minimum) == (64, 1)


@pytest.mark.parametrize(
    ("strategy", "temperature", "top_k", "expected"),
    [("greedy", None, None, True), ("beam", None, None, True), ("sampling", 0, None, True),
     ("sampling", 0.7, None, False), ("top_k", 0.5, 1, True), ("top_k", 0.5, 1.0, True),
     ("top_k", 0.5, 10, False), ("top_k", "x", "y", False)],
)  # fmt: skip
def test_which_parameters_give_one_text_whatever_the_seed(
    strategy: str, temperature: object, top_k: object, expected: bool
) -> None:
    assert is_deterministic(strategy, temperature, top_k) is expected
    assert STRATEGIES_BY_NAME[strategy].is_random is (strategy not in {"greedy", "beam"})
