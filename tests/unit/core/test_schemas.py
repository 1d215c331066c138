"""Requests: every bad field named, nothing but ValidationFailed, and parameters that come back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ValidationFailed
from core.schemas import (
    ModelLimits,
    RequestContext,
    parse_job_request,
    parse_run_request,
)
from core.strategies import STRATEGIES

UNKNOWN = ModelLimits(None, None, None)
KNOWN = ModelLimits(100, 500, lambda text: len(text.split()))
CONTEXT = RequestContext("m", {"m": KNOWN, "cold": UNKNOWN})
SERVED = [spec for spec in STRATEGIES if spec.is_served]
NUMBERS = [(spec, parameter) for spec in SERVED for parameter in spec.parameters]


def fields_of(payload: object) -> set[str]:
    with pytest.raises(ValidationFailed) as caught:
        parse_job_request(payload, CONTEXT)
    return {error.field for error in caught.value.errors}


def test_every_bad_field_is_named_at_once() -> None:
    payload = {
        "prompt": " ",
        "model": "nobody",
        "strategy": "top_k",
        "top_k": 0,
        "temperature": math.nan,
        "seed": -1,
        "stop": ["", "x" * 65],
        "colour": "red",
    }
    wanted = {"prompt", "model", "top_k", "temperature", "seed", "stop.0", "stop.1", "colour"}
    assert fields_of(payload) == wanted


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "\n\t "}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "word " * 100}, "prompt"),
        ({"prompt": "a", "strategy": "nope"}, "strategy"),
        ({"prompt": "a", "strategy": None}, "strategy"),
        ({"prompt": "a", "strategy": "beam"}, "strategy"),
        ({"prompt": "a", "top_k": 3}, "top_k"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": 101}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": True}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": "5"}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": 1.5}, "max_new_tokens"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "stop": ["x"] * 9}, "stop"),
        ({"prompt": "a", "stop": "x"}, "stop"),
        ({"prompt": "a", "trace": 1}, "trace"),
        ({"prompt": "a", "strategy": "top_k", "top_k": 501}, "top_k"),
        ({"prompt": "a", "strategy": "sampling", "temperature": math.inf}, "temperature"),
        ([], ""),
        ("text", ""),
        (None, ""),
    ],
)
def test_a_bad_field_is_refused(payload: object, field: str) -> None:
    assert fields_of(payload) == {field}


@pytest.mark.parametrize(("spec", "parameter"), NUMBERS)
def test_the_bounds_of_the_table_are_the_bounds_of_the_request(spec: Any, parameter: Any) -> None:
    def is_taken(value: float) -> bool:
        try:
            payload = {"prompt": "a", "strategy": spec.name, parameter.name: value}
            parse_job_request(payload, CONTEXT)
        except ValidationFailed:
            return False
        return True

    assert is_taken(parameter.default)
    assert is_taken(parameter.minimum) != parameter.exclusive_minimum
    assert not is_taken(parameter.minimum - 1)
    if parameter.maximum is not None:
        assert is_taken(parameter.maximum)
        assert not is_taken(parameter.maximum + 0.001)


@pytest.mark.parametrize("spec", SERVED)
def test_resolved_parameters_come_back_as_they_are(spec: Any) -> None:
    first = parse_job_request({"prompt": "a", "strategy": spec.name}, CONTEXT)
    resolved = first.resolved_parameters()
    again = parse_job_request({"prompt": "a", "strategy": spec.name, **resolved}, CONTEXT)
    assert again.resolved_parameters() == resolved


def test_a_whole_number_may_be_written_with_a_point() -> None:
    request = parse_job_request({"prompt": "a", "max_new_tokens": 64.0}, CONTEXT)
    assert request.max_new_tokens == 64


def test_a_default_that_a_small_model_cannot_reach_is_lowered() -> None:
    small = RequestContext("m", {"m": ModelLimits(16, 5, None)})
    request = parse_job_request({"prompt": "a", "strategy": "top_k"}, small)
    resolved = request.resolved_parameters()
    assert (resolved["max_new_tokens"], resolved["top_k"]) == (16, 5)


def test_a_model_nobody_has_loaded_sets_no_limits() -> None:
    payload = {"prompt": "word " * 500, "model": "cold", "max_new_tokens": 9000}
    assert parse_job_request(payload, CONTEXT).model == "cold"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["prompt", "model", "strategy", "temperature", "top_k", "top_p", "min_p", "typical_p",
     "max_new_tokens", "seed", "stop", "trace", "variants", "samples", "num_beams"]
)  # fmt: skip
VALUES = JSON | st.sampled_from([spec.name for spec in STRATEGIES])


@given(st.dictionaries(NAMES | st.text(), VALUES, max_size=8))
def test_any_json_is_taken_or_refused_by_name(payload: dict[str, Any]) -> None:
    for parse in (parse_job_request, parse_run_request):
        failure = None
        try:
            parse(payload, CONTEXT)
        except ValidationFailed as failed:
            failure = failed
        if failure is not None:
            assert failure.errors
            for error in failure.errors:
                assert error.message.encode()
                error.field.encode()


def test_a_run_lays_out_variants_and_samples() -> None:
    planned = parse_run_request(
        {
            "prompt": "a",
            "samples": 3,
            "seed": 10,
            "max_new_tokens": 7,
            "variants": [
                {"strategy": "greedy"},
                {"strategy": "sampling"},
                {"strategy": "top_k", "top_k": 1},
                {"strategy": "sampling", "samples": 2, "seed": 5, "max_new_tokens": 9},
            ],
        },
        CONTEXT,
    )
    told = [(p.variant_index, p.sample_index, p.parameters["seed"]) for p in planned]
    assert told == [
        (0, 0, 10),
        (1, 0, 10),
        (1, 1, 11),
        (1, 2, 12),
        (2, 0, 10),
        (3, 0, 5),
        (3, 1, 6),
    ]
    assert [p.parameters["max_new_tokens"] for p in planned] == [7, 7, 7, 7, 7, 9, 9]


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        ({"prompt": "a", "variants": []}, {"variants"}),
        ({"prompt": "a"}, {"variants"}),
        ({"prompt": "", "variants": [{}]}, {"prompt"}),
        (
            {"prompt": "a", "variants": [{}, {"strategy": "top_k", "top_k": 0}]},
            {"variants.1.top_k"},
        ),
        ({"prompt": "a", "variants": [{"prompt": "b"}]}, {"variants.0.prompt"}),
        ({"prompt": "a", "seed": -1, "variants": [{}, {}]}, {"seed"}),
        ({"prompt": "a", "samples": 17, "variants": [{}]}, {"samples"}),
        ({"prompt": "a", "variants": [{"samples": 0}]}, {"variants.0.samples"}),
        ({"prompt": "a", "variants": [{}], "colour": 1}, {"colour"}),
        ({"prompt": "a", "samples": 16, "variants": [{"strategy": "sampling"}] * 5}, {"samples"}),
    ],
)
def test_a_bad_run_names_the_variant_and_the_field(
    payload: dict[str, Any], fields: set[str]
) -> None:
    with pytest.raises(ValidationFailed) as caught:
        parse_run_request(payload, CONTEXT)
    assert {error.field for error in caught.value.errors} == fields
