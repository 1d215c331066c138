"""Validation of requests: every payload is either accepted or rejected by named fields."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from textmill.backend.request_context import ModelLimits, RequestContext
from textmill.backend.request_models import JOB_REQUESTS, parse_job_request
from textmill.backend.run_requests import (
    MAX_JOBS_PER_RUN,
    MAX_SAMPLES,
    MAX_VARIANTS,
    parse_run_request,
)
from textmill.core.errors import ValidationFailed
from textmill.core.strategies import (
    MAX_SEED,
    STRATEGIES,
    STRATEGIES_BY_NAME,
    decoding_parameters,
)
from textmill.core.strategy_specs import ParameterSpec
from textmill.tokenizing.safe_tokenizer import TokenizerFault


class Words:
    """Counts words as tokens, and counts its calls."""

    def __init__(self, fault: TokenizerFault | None = None) -> None:
        self.num_asked = 0
        self._fault = fault

    def __call__(self, text: str) -> int:
        self.num_asked += 1
        if self._fault is not None:
            raise self._fault
        return len(text.split())

    def least(self, text: str) -> int:
        return len(text) // 1000


SERVED = [spec.name for spec in STRATEGIES]
CONTEXT = RequestContext(
    default_model="small",
    limits={
        "small": ModelLimits(32, 50, Words()),
        "unloaded": ModelLimits(None, None, None),
    },
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["\0", "\ud800", "a\udfffb", "", " "]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = sorted({name for model in JOB_REQUESTS.values() for name in model.model_fields})
PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        name: JSON_VALUES
        | {
            "prompt": st.just("words to continue"),
            "strategy": st.sampled_from([*JOB_REQUESTS, "none"]),
            "model": st.sampled_from(["small", "unloaded", "other"]),
        }.get(name, JSON_VALUES)
        for name in FIELDS
    },
)


def fields_of(payload: object, context: RequestContext | None = CONTEXT) -> list[str]:
    with pytest.raises(ValidationFailed) as caught:
        parse_job_request(payload, context)
    return [error.field for error in caught.value.errors]


def resolved(payload: dict[str, Any], context: RequestContext | None = None) -> dict[str, Any]:
    return parse_job_request(payload, context).resolved_parameters()


# ---- any payload ------------------------------------------------------------------------------


@settings(max_examples=300)
@given(JSON_VALUES | PAYLOADS | st.dictionaries(st.text(), JSON_VALUES, max_size=3))
@example({"prompt": "a", "temperature": 10**400, "strategy": "top_p"})
@example({"prompt": "a", "\ud800": 1})
@example({"prompt": "a", "a\0b": 1, "strategy": "\ud800"})
@example({"prompt": "a", "strategy": {}})
@example({"prompt": "a", "seed": 1e308})
def test_any_payload_is_accepted_or_rejected_by_named_fields(payload: object) -> None:
    for context in (None, CONTEXT):
        try:
            parse_job_request(payload, context)
        except ValidationFailed as failed:
            _can_be_sent(failed)


@settings(max_examples=300)
@given(
    JSON_VALUES
    | st.fixed_dictionaries(
        {"prompt": JSON_VALUES | st.just("a"), "variants": st.lists(PAYLOADS | JSON_VALUES)},
        optional={
            "samples": JSON_VALUES,
            "seed": JSON_VALUES,
            "model": JSON_VALUES,
            "max_new_tokens": JSON_VALUES,
            "stop": JSON_VALUES,
            "trace": JSON_VALUES,
            "other": JSON_VALUES,
        },
    )
)
@example({"prompt": "\ud800", "variants": [{}]})
@example({"prompt": "a", "variants": [{"samples": 1e400}]})
@example({"prompt": "a", "variants": [{"samples": math.nan, "prompt": 1}]})
@example({"prompt": "a", "variants": {"0": {}}})
def test_any_run_is_accepted_or_rejected_by_named_fields(payload: object) -> None:
    for context in (None, CONTEXT):
        try:
            planned = parse_run_request(payload, context)
        except ValidationFailed as failed:
            _can_be_sent(failed)
        else:
            assert 1 <= len(planned) <= MAX_JOBS_PER_RUN


def _can_be_sent(failed: ValidationFailed) -> None:
    assert failed.errors
    for error in failed.errors:
        assert error.message
        f"{error.field} {error.message} {failed}".encode()
        assert "\0" not in error.field
    fields = [(error.field, error.message) for error in failed.errors]
    assert len(fields) == len(set(fields))


@settings(max_examples=200)
@given(PAYLOADS.map(lambda fields: {"prompt": "go on", **fields}))
def test_the_resolved_parameters_sent_back_resolve_to_themselves(payload: dict[str, Any]) -> None:
    try:
        request = parse_job_request(payload, CONTEXT)
    except ValidationFailed:
        return
    parameters = request.resolved_parameters()
    as_stored = json.loads(json.dumps(parameters))
    assert as_stored == parameters
    again = parse_job_request(
        {"prompt": request.prompt, "strategy": request.strategy, "model": request.model}
        | as_stored,
        CONTEXT,
    )
    assert again.resolved_parameters() == parameters
    decoding = decoding_parameters(request.strategy, as_stored, trace=request.trace)
    assert decoding.max_new_tokens == parameters["max_new_tokens"]
    assert decoding.seed == parameters["seed"]


# ---- the ranges -------------------------------------------------------------------------------


def test_only_the_prompt_is_required_and_the_default_is_greedy() -> None:
    request = parse_job_request({"prompt": "a"})
    assert request.strategy == "greedy"
    parameters = request.resolved_parameters()
    assert parameters.pop("seed") in range(MAX_SEED + 1)
    assert parameters == {"repetition_penalty": 1.0, "max_new_tokens": 64, "stop": []}


@pytest.mark.parametrize("strategy", SERVED)
def test_every_strategy_has_its_defaults(strategy: str) -> None:
    parameters = resolved({"prompt": "a", "strategy": strategy, "seed": 7})
    expected = STRATEGIES_BY_NAME[strategy].defaults()
    assert parameters == expected | {"max_new_tokens": 64, "seed": 7, "stop": []}


BOUNDED = [(spec.name, p) for spec in STRATEGIES for p in spec.parameters]


@pytest.mark.parametrize(("strategy", "parameter"), BOUNDED, ids=lambda v: getattr(v, "name", v))
def test_every_parameter_is_accepted_up_to_its_bounds(
    strategy: str, parameter: ParameterSpec
) -> None:
    def body(value: object) -> dict[str, object]:
        return {"prompt": "a", "strategy": strategy, parameter.name: value}

    step: float = 1 if parameter.type == "integer" else 1e-9
    low, high = parameter.minimum, parameter.maximum
    if parameter.exclusive_minimum:
        assert fields_of(body(low)) == [parameter.name]
        assert resolved(body(low + step))[parameter.name] == low + step
    else:
        assert resolved(body(low))[parameter.name] == low
    assert fields_of(body(low - step)) == [parameter.name]
    if high is not None:
        assert resolved(body(high))[parameter.name] == high
        assert fields_of(body(high + step)) == [parameter.name]
    others: list[object] = [math.nan, math.inf, -math.inf, True, False, "1", [1], {}, 10**400]
    for bad in others:
        assert fields_of(body(bad)) == [parameter.name], bad


def custom(**fields: object) -> dict[str, object]:
    return {"prompt": "a", "strategy": "custom", **fields}


def test_biases_are_stored_by_token_id() -> None:
    bias = {"0": -100, "49": 100, "7": 0.5}
    assert resolved(custom(logit_bias=bias))["logit_bias"] == bias
    assert resolved(custom(logit_bias=None))["logit_bias"] == {}
    assert len(resolved(custom(logit_bias={str(i): 1 for i in range(50)}))["logit_bias"]) == 50


@pytest.mark.parametrize(
    ("bias", "field", "message"),
    [
        ({"a": 1}, "logit_bias", "must be token ids, such as 464; 'a' is none"),
        ({"-1": 1}, "logit_bias", "must be token ids"),
        ({"01": 1}, "logit_bias", "must be token ids"),
        ({"1.0": 1}, "logit_bias", "must be token ids"),
        ({"": 1}, "logit_bias", "must be token ids"),
        ({"²": 1}, "logit_bias", "must be token ids"),
        ({"9" * 5000: 1}, "logit_bias", "must be token ids"),
        ({"9" * 19: 1}, "logit_bias", "no token 9999999999999999999; the model's ids are 0 to 49"),
        ({"50": 1}, "logit_bias", "there is no token 50; the model's ids are 0 to 49"),
        ({"5": 100.1}, "logit_bias.5", "must be at most 100"),
        ({"5": -101}, "logit_bias.5", "must be at least -100"),
        ({"5": math.nan}, "logit_bias.5", "must be a finite number"),
        ({"5": "1"}, "logit_bias.5", "must be a number"),
        ({"5": True}, "logit_bias.5", "must be a number"),
        ({str(i): 1 for i in range(301)}, "logit_bias", "must have at most 300 items"),
        ([5], "logit_bias", "must be a JSON object"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_bias_is_named(bias: object, field: str, message: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        parse_job_request(custom(logit_bias=bias), CONTEXT)
    [error] = caught.value.errors
    assert error.field == field
    assert message in error.message


def test_sequence_breakers_are_a_bounded_list_of_strings() -> None:
    name = "dry_sequence_breakers"
    assert resolved(custom(**{name: []}))[name] == []
    assert resolved(custom(**{name: ["\n", "é" * 64]}))[name] == ["\n", "é" * 64]
    assert len(resolved(custom(**{name: ["x"] * 32}))[name]) == 32
    assert fields_of(custom(**{name: ["x"] * 33})) == [name]
    for bad in ("", "x" * 65, "\0", "\ud800", 5, None):
        assert fields_of(custom(**{name: ["x", bad]})) == [f"{name}.1"]
    assert fields_of(custom(**{name: "x"})) == [name]


@pytest.mark.parametrize("strategy", [spec.name for spec in STRATEGIES])
def test_a_parameter_of_another_strategy_is_rejected(strategy: str) -> None:
    own = STRATEGIES_BY_NAME[strategy].parameter_names
    others: dict[str, object] = {"nonsense": 1}
    for spec in STRATEGIES:
        others |= spec.defaults()
    for name in others.keys() - own:
        fields = fields_of({"prompt": "a", "strategy": strategy, name: others[name]})
        assert name in fields
        assert set(fields) <= {name, "strategy"}


@pytest.mark.parametrize("strategy", ["", "TOP_K", "top-k", 1, [], {"a": 1}, "\ud800", "x\0"])
def test_an_unknown_strategy_is_named_beside_other_bad_fields(strategy: object) -> None:
    fields = fields_of({"prompt": "a", "strategy": strategy, "max_new_tokens": 0, "top_k": 4})
    assert fields == ["strategy", "max_new_tokens"]


def test_all_bad_fields_are_named_at_once() -> None:
    fields = fields_of(
        {"prompt": "", "strategy": "top_k", "top_k": 0, "temperature": 3, "seed": -1, "trace": 1}
    )
    assert sorted(fields) == ["prompt", "seed", "temperature", "top_k", "trace"]


@pytest.mark.parametrize("value", [64, 64.0])
def test_json_has_one_kind_of_number(value: float) -> None:
    body = {"prompt": "a", "max_new_tokens": value, "strategy": "top_k", "top_k": value}
    parameters = resolved(body | {"temperature": 1})
    assert (parameters["max_new_tokens"], parameters["top_k"]) == (64, 64)
    assert type(parameters["max_new_tokens"]) is int
    assert type(parameters["temperature"]) is float


@pytest.mark.parametrize("value", [64.5, "64", True, math.nan, math.inf, [64], 0, -1])
def test_an_invalid_length_is_rejected(value: object) -> None:
    assert fields_of({"prompt": "a", "max_new_tokens": value}) == ["max_new_tokens"]


@pytest.mark.parametrize("seed", [0, 7.0, MAX_SEED])
def test_a_seed_is_kept(seed: float) -> None:
    assert resolved({"prompt": "a", "seed": seed})["seed"] == seed


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 0.5, True, "7", 1e300])
def test_an_invalid_seed_is_rejected(seed: object) -> None:
    assert fields_of({"prompt": "a", "seed": seed}) == ["seed"]


def test_a_random_seed_replaces_an_absent_or_null_one() -> None:
    drawn = {resolved({"prompt": "a", "seed": None})["seed"] for _ in range(8)}
    assert len(drawn) == 8  # of 2^63: a repetition has a chance below 1e-17


@pytest.mark.parametrize(
    "prompt", ["", "  \n\t ", "\u00a0\u2003", "a\0b", "\ud800", "a\udfff", 1, None, ["a"], {}]
)
def test_an_invalid_prompt_is_rejected(prompt: object) -> None:
    assert fields_of({"prompt": prompt}) == ["prompt"]


def test_a_missing_prompt_is_named() -> None:
    assert fields_of({}) == ["prompt"]


@pytest.mark.parametrize("body", [None, [], "a", 1, 1.5, True])
def test_a_body_must_be_an_object(body: object) -> None:
    assert fields_of(body) == [""]


def test_stop_strings_are_bounded() -> None:
    assert resolved({"prompt": "a", "stop": ["😀" * 64] * 8})["stop"] == ["😀" * 64] * 8
    for bad in (["a"] * 9, "a", {"a": 1}):
        assert fields_of({"prompt": "a", "stop": bad}) == ["stop"]
    for item in ("", "a" * 65, "\0", "\ud800", 1, None):
        assert fields_of({"prompt": "a", "stop": ["ok", item]}) == ["stop.1"]


# ---- what depends on the model ----------------------------------------------------------------


def test_the_models_limits_hold() -> None:
    assert resolved({"prompt": "a", "max_new_tokens": 32}, CONTEXT)["max_new_tokens"] == 32
    assert fields_of({"prompt": "a", "max_new_tokens": 33}) == ["max_new_tokens"]
    top_k = {"prompt": "a", "strategy": "top_k"}
    assert resolved(top_k | {"top_k": 50}, CONTEXT)["top_k"] == 50
    assert fields_of(top_k | {"top_k": 51}) == ["top_k"]
    assert fields_of({"prompt": "a", "model": "other"}) == ["model"]
    parse_job_request({"prompt": "w " * 31}, CONTEXT)
    with pytest.raises(ValidationFailed) as caught:
        parse_job_request({"prompt": "w " * 40}, CONTEXT)
    assert "40" in caught.value.errors[0].message
    assert "32" in caught.value.errors[0].message


def test_a_default_beyond_the_limits_of_a_small_model_is_lowered() -> None:
    assert resolved({"prompt": "a"}, CONTEXT)["max_new_tokens"] == 32


def test_a_model_that_is_not_loaded_sets_no_limits() -> None:
    body = {"prompt": "w " * 100, "model": "unloaded", "max_new_tokens": 100_000}
    assert resolved(body, CONTEXT)["max_new_tokens"] == 100_000
    top_k = body | {"strategy": "top_k", "top_k": 10**6}
    assert resolved(top_k, CONTEXT)["top_k"] == 10**6


# ---- null ---------------------------------------------------------------------------------------

OPTIONAL = sorted({*FIELDS} - {"prompt"})


@pytest.mark.parametrize("strategy", SERVED)
def test_null_means_omitted_in_every_optional_field(strategy: str) -> None:
    body = {"prompt": "a", "strategy": strategy, "seed": 1}
    nulls = {name: None for name in OPTIONAL if name not in body}
    assert resolved(body | nulls) == resolved(body)
    every = parse_job_request({"prompt": "a"} | dict.fromkeys(OPTIONAL), CONTEXT)
    assert (every.strategy, every.model, every.trace) == ("greedy", "small", False)


def test_null_means_omitted_in_runs_and_variants() -> None:
    nulls = dict.fromkeys([*OPTIONAL, "samples"])
    common = dict.fromkeys(("model", "max_new_tokens", "seed", "stop", "trace", "samples"))
    (plan,) = parse_run_request({"prompt": "a", "variants": [nulls], **common}, CONTEXT)
    assert plan.request.strategy == "greedy"
    of_run = {"seed": 5, "stop": ["x"], "trace": True, "max_new_tokens": 3, "samples": 2}
    variant = nulls | {"strategy": "sampling", "prompt": None}
    planned = parse_run_request({"prompt": "a", **of_run, "variants": [variant]}, CONTEXT)
    assert [p.parameters["seed"] for p in planned] == [5, 6]
    assert {p.request.trace for p in planned} == {True}
    assert [p.parameters["stop"] for p in planned] == [["x"], ["x"]]


def test_null_is_rejected_for_required_and_unknown_fields() -> None:
    assert fields_of({"prompt": None}) == ["prompt"]
    assert fields_of({"prompt": "a", "nonsense": None}) == ["nonsense"]
    assert fields_of({"prompt": "a", "stop": [None]}) == ["stop.0"]
    assert run_fields({"prompt": None, "variants": None}) == ["prompt", "variants"]
    assert run_fields({"prompt": "a", "variants": [None]}) == ["variants.0"]


# ---- runs -------------------------------------------------------------------------------------


def run_fields(payload: object) -> list[str]:
    with pytest.raises(ValidationFailed) as caught:
        parse_run_request(payload, CONTEXT)
    return [error.field for error in caught.value.errors]


def test_a_run_is_ordered_by_variant_then_sample_with_consecutive_seeds() -> None:
    planned = parse_run_request(
        {
            "prompt": "a",
            "seed": MAX_SEED,
            "samples": 2,
            "variants": [
                {"strategy": "sampling"},
                {"strategy": "top_k", "top_k": 3, "samples": 1, "seed": 5},
                {"strategy": "greedy"},
            ],
        },
        CONTEXT,
    )
    places = [(p.variant_index, p.sample_index, p.parameters["seed"]) for p in planned]
    assert places == [(0, 0, MAX_SEED), (0, 1, 0), (1, 0, 5), (2, 0, MAX_SEED)]


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [(2**53 - 1, [2**53 - 1, 0, 1]), (2**53 - 2, [2**53 - 2, 2**53 - 1, 0]),
     (2**53, [2**53, 2**53 + 1, 2**53 + 2]), (MAX_SEED - 1, [MAX_SEED - 1, MAX_SEED, 0])],
)  # fmt: skip
def test_the_seeds_of_samples_stay_exact_in_javascript(seed: int, seeds: list[int]) -> None:
    planned = parse_run_request(
        {"prompt": "a", "seed": seed, "samples": 3, "variants": [{"strategy": "sampling"}]}, CONTEXT
    )
    assert [p.parameters["seed"] for p in planned] == seeds


def test_random_seeds_are_exact_in_javascript_and_larger_ones_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds: list[int] = []

    def largest(bound: int) -> int:
        bounds.append(bound)
        return bound - 1

    monkeypatch.setattr("textmill.backend.request_models.secrets.randbelow", largest)
    assert resolved({"prompt": "a"})["seed"] == 2**53 - 1
    assert set(bounds) == {2**53}
    assert resolved({"prompt": "a", "seed": MAX_SEED})["seed"] == MAX_SEED


def test_samples_without_a_seed_get_different_seeds() -> None:
    planned = parse_run_request(
        {"prompt": "a", "variants": [{"strategy": "sampling", "samples": 16}]}, CONTEXT
    )
    assert len({p.parameters["seed"] for p in planned}) == 16


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"strategy": "greedy"},
        {"strategy": "sampling", "temperature": 0},
        {"strategy": "top_p", "temperature": 0.0},
        {"strategy": "top_k", "top_k": 1},
        {"strategy": "top_k", "top_k": 1.0},
    ],
)
def test_a_deterministic_variant_has_one_sample(variant: dict[str, Any]) -> None:
    planned = parse_run_request({"prompt": "a", "samples": 4, "variants": [variant]}, CONTEXT)
    assert len(planned) == 1


def test_a_variant_inherits_omitted_fields_from_the_run() -> None:
    (plan,) = parse_run_request(
        {
            "prompt": "a",
            "model": "unloaded",
            "max_new_tokens": 3,
            "stop": ["x"],
            "trace": True,
            "variants": [{"max_new_tokens": 5}],
        },
        CONTEXT,
    )
    assert plan.request.model == "unloaded"
    assert (plan.parameters["max_new_tokens"], plan.parameters["stop"]) == (5, ["x"])
    assert plan.request.trace


def test_variants_may_differ_by_model() -> None:
    planned = parse_run_request(
        {"prompt": "a", "model": "unloaded", "variants": [{"model": "small"}, {}]}, CONTEXT
    )
    assert [plan.request.model for plan in planned] == ["small", "unloaded"]


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        ([], [""]),
        ({}, ["prompt", "variants"]),
        ({"prompt": "a", "variants": []}, ["variants"]),
        ({"prompt": "a", "variants": [{}] * (MAX_VARIANTS + 1)}, ["variants"]),
        ({"prompt": "a", "variants": {}}, ["variants"]),
        ({"prompt": "a", "variants": [{}], "samples": 0}, ["samples"]),
        ({"prompt": "a", "variants": [{}], "samples": MAX_SAMPLES + 1}, ["samples"]),
        ({"prompt": "a", "variants": [{}], "nonsense": 1}, ["nonsense"]),
        ({"prompt": "a", "variants": [{"samples": True}]}, ["variants.0.samples"]),
        ({"prompt": "a", "variants": [{"prompt": "b"}]}, ["variants.0.prompt"]),
        ({"prompt": "a", "variants": [{}, {"strategy": "no"}]}, ["variants.1.strategy"]),
        (
            {"prompt": "a", "variants": [{"strategy": "top_k", "top_k": 0}, {"stop": [""]}]},
            ["variants.0.top_k", "variants.1.stop.0"],
        ),
        # An error in a field of the run is reported once, at the run.
        ({"prompt": "a", "variants": [{}, {}], "seed": -1}, ["seed"]),
        ({"prompt": " ", "variants": [{}, {}]}, ["prompt"]),
        ({"prompt": "a", "model": "other", "variants": [{}, {}]}, ["model"]),
        ({"prompt": "a", "variants": [{}, {"model": "other"}]}, ["variants.1.model"]),
        (
            {"prompt": "a", "seed": -1, "variants": [{"seed": -2}, {}]},
            ["variants.0.seed", "seed"],
        ),
        (
            {
                "prompt": "a",
                "samples": 16,
                "variants": [{"strategy": "sampling"}] * 5,
            },
            ["samples"],
        ),
    ],
)
def test_a_bad_run_names_the_variant_and_the_field(payload: object, fields: list[str]) -> None:
    assert run_fields(payload) == fields


def test_a_prompt_that_is_obviously_too_long_is_rejected_without_tokenizing() -> None:
    words = Words()
    context = RequestContext("small", {"small": ModelLimits(32, 50, words)})
    with pytest.raises(ValidationFailed) as caught:
        parse_job_request({"prompt": "x" * 40_000}, context)
    assert [error.field for error in caught.value.errors] == ["prompt"]
    assert "at least 40 tokens" in caught.value.errors[0].message
    assert words.num_asked == 0


def test_a_prompt_that_the_tokenizer_cannot_process_is_an_error_of_the_prompt() -> None:
    words = Words(TokenizerFault("The model's tokenizer cannot read this text: why."))
    context = RequestContext("small", {"small": ModelLimits(32, 50, words)})
    with pytest.raises(ValidationFailed) as caught:
        parse_run_request({"prompt": "x", "variants": [{}, {}]}, context)
    assert [error.field for error in caught.value.errors] == ["prompt"]
    assert "cannot read this text: why" in caught.value.errors[0].message
