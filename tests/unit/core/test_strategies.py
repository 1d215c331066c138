"""The table of strategies against the contract's."""

from __future__ import annotations

import pytest

from textmill.core.strategies import (
    MAX_NEW_TOKENS,
    STRATEGIES,
    STRATEGIES_BY_NAME,
    DecodingParameters,
    decoding_parameters,
    is_deterministic,
)

# (default, minimum, maximum, minimum excluded), from the contract's table; custom is not in it.
CONTRACT: dict[str, dict[str, tuple[float, float, float | None, bool]]] = {
    "greedy": {},
    "sampling": {"temperature": (0.7, 0, 2, False)},
    "top_k": {"temperature": (0.5, 0, 2, False), "top_k": (10, 1, None, False)},
    "top_p": {"temperature": (1.0, 0, 2, False), "top_p": (0.9, 0, 1, True)},
    "min_p": {"temperature": (1.0, 0, 2, False), "min_p": (0.05, 0, 1, False)},
    "typical": {"temperature": (1.0, 0, 2, False), "typical_p": (0.95, 0, 1, True)},
    "beam": {"num_beams": (4, 2, 8, False), "length_penalty": (1.0, -2, 2, False)},
    "custom": {
        "temperature": (1.0, 0, 2, False),
        "top_k": (0, 0, None, False),
        "top_p": (1.0, 0, 1, True),
        "min_p": (0.0, 0, 1, False),
        "typical_p": (1.0, 0, 1, True),
        "top_n_sigma": (0.0, 0, 10, False),
        "xtc_probability": (0.0, 0, 1, False),
        "xtc_threshold": (0.1, 0, 1, True),
        "frequency_penalty": (0.0, -2, 2, False),
        "presence_penalty": (0.0, -2, 2, False),
        "dry_multiplier": (0.0, 0, 10, False),
        "dry_base": (1.75, 1, 4, False),
        "dry_allowed_length": (2, 1, 50, False),
        "dry_range": (0, 0, 131_072, False),
    },
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
    assert (plain.frequency_penalty, plain.presence_penalty, plain.logit_bias) == (0.0, 0.0, ())
    assert (plain.top_n_sigma, plain.xtc_probability, plain.dry_multiplier) == (0.0, 0.0, 0.0)


def test_every_number_of_custom_is_off_by_default() -> None:
    stored = {p.name: p.default for p in STRATEGIES_BY_NAME["custom"].parameters}
    own = decoding_parameters("custom", stored | {"max_new_tokens": 1, "seed": 0}, trace=False)
    assert own == DecodingParameters("custom", 1, seed=0)


def test_lists_and_objects_of_a_stored_job_become_tuples() -> None:
    stored: dict[str, object] = {"max_new_tokens": 1, "seed": 0}
    stored |= {"logit_bias": {"40": 2, "7": -1.5}, "dry_sequence_breakers": ["\n", ":"]}
    own = decoding_parameters("custom", stored, trace=False)
    assert own.logit_bias == ((7, -1.5), (40, 2.0))
    assert own.dry_sequence_breakers == ("\n", ":")


def test_the_lists_and_objects_of_custom_have_names_bounds_and_sentences() -> None:
    collections = {own.name: own for own in STRATEGIES_BY_NAME["custom"].collections}
    assert list(collections) == ["logit_bias", "dry_sequence_breakers"]
    assert collections["logit_bias"].default_json() == {}
    assert collections["logit_bias"].max_items == 300
    assert collections["dry_sequence_breakers"].default_json() == ["\n", ":", '"', "*"]
    for own in collections.values():
        assert own.title
        assert own.description.endswith(".")


def test_the_default_length_is_64() -> None:
    assert (MAX_NEW_TOKENS.default, MAX_NEW_TOKENS.minimum) == (64, 1)


@pytest.mark.parametrize(
    ("strategy", "temperature", "top_k", "expected"),
    [("greedy", None, None, True), ("beam", None, None, True), ("sampling", 0, None, True),
     ("sampling", 0.7, None, False), ("top_k", 0.5, 1, True), ("top_k", 0.5, 1.0, True),
     ("top_k", 0.5, 10, False), ("top_k", "x", "y", False), ("custom", 0.0, 0, True),
     ("custom", 1.0, 1, True), ("custom", 1.0, 0, False)],
)  # fmt: skip
def test_which_parameters_give_one_text_whatever_the_seed(
    strategy: str, temperature: object, top_k: object, expected: bool
) -> None:
    assert is_deterministic(strategy, temperature, top_k) is expected
    assert STRATEGIES_BY_NAME[strategy].is_random is (strategy not in {"greedy", "beam"})
