"""Completions of tiny models equal those of transformers, in any batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.kernels import KERNEL_DIR
from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.strategies import DecodingParameters
from textmill.engine import GenerationRequest, GenerationResult, InferenceEngine
from textmill.engine.models.loading import LoadedModel, load
from textmill.engine.models.tokenizer import TextTokenizer

PATIENCE_SECONDS = 120.0
NUM_NEW = 40
PROMPTS = (
    "The quick",
    "Title: Attention is all you need\nAbstract: The dominant models",
    "你好 café",
    "x" * 90,
    "T",
)
STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "greedy"},
    {"strategy": "greedy", "repetition_penalty": 1.3},
    {"strategy": "sampling", "temperature": 0.7},
    {"strategy": "top_k", "top_k": 10, "temperature": 0.5},
    {"strategy": "top_p", "top_p": 0.9},
    {"strategy": "min_p", "min_p": 0.05},
    {"strategy": "typical", "typical_p": 0.9, "repetition_penalty": 1.1},
    {
        "strategy": "custom",
        "temperature": 1.1,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.001,
        "repetition_penalty": 1.05,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.1,
        "logit_bias": ((5, 1.5), (40, -100.0)),
        "top_n_sigma": 3.0,
        "xtc_probability": 0.3,
        "dry_multiplier": 0.8,
        "dry_sequence_breakers": ("\n", " the"),
    },
    {"strategy": "custom", "temperature": 0.0, "presence_penalty": 0.5, "dry_multiplier": 1.0},
    {"strategy": "beam", "num_beams": 3},
]
# How the models are computed: by PyTorch, by the kernels in float32, by the kernels in int8.
KINDS = {
    "torch": ("float32", None),
    "kernels": ("float32", KERNEL_DIR),
    "int8": ("int8", KERNEL_DIR),
}
kinds = pytest.mark.parametrize("kind", KINDS)
exact_kinds = pytest.mark.parametrize("kind", ["torch", "kernels"])


@cache
def loaded(family: str, num_slots: int, kind: str = "torch") -> LoadedModel:
    return newly_loaded(family, num_slots, kind)


@cache
def fresh(family: str, num_slots: int, kind: str) -> LoadedModel:
    """One of one's own, which knows no prompts yet."""
    return newly_loaded(family, num_slots, kind)


def newly_loaded(family: str, num_slots: int, kind: str) -> LoadedModel:
    dtype, kernel_dir = {**KINDS, "bfloat16": ("bfloat16", None)}[kind]
    spec = ModelSpec(family, str(tiny_model(family)), None, dtype, True, "")
    return load(
        spec,
        cache_dir=Path("/nonexistent"),  # a folder in save_pretrained layout needs no conversion
        dtype=dtype,
        num_slots=num_slots,
        kernel_dir=kernel_dir,
        report=lambda _: None,
    )


@cache
def generated(family: str, prompt: str, repetition_penalty: float = 1.0) -> str:
    folder = tiny_model(family)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")
    written = model.generate(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        max_new_tokens=NUM_NEW,
        do_sample=False,
        repetition_penalty=repetition_penalty,
        pad_token_id=0,
    )
    return in_whole_characters(folder, written[0, ids["input_ids"].shape[1] :].tolist())


def in_whole_characters(folder: Path, ids: list[int]) -> str:
    """The text of tokens by transformers, without an incomplete character at the end."""
    text = str(AutoTokenizer.from_pretrained(folder).decode(ids, skip_special_tokens=True))
    ours = TextTokenizer(folder / "tokenizer.json").decode(ids)
    assert text in {ours, ours + "\ufffd"}
    return ours


def request(family: str, job: int, prompt: str, **changes: Any) -> GenerationRequest:
    parameters = {"max_new_tokens": NUM_NEW, "seed": job, **changes}
    return GenerationRequest(str(job), family, prompt, DecodingParameters(**parameters))


def run_all(
    family: str,
    requests: list[GenerationRequest],
    num_slots: int,
    kind: str = "torch",
    model_of: Callable[[str, int, str], LoadedModel] = loaded,
) -> dict[str, GenerationResult]:
    engine = InferenceEngine({family: model_of(family, num_slots, kind)}, num_slots=num_slots)
    engine.start()
    try:
        generations = {asked.job_id: engine.submit(asked) for asked in requests}
        return {job: g.result(PATIENCE_SECONDS) for job, g in generations.items()}
    finally:
        engine.stop(PATIENCE_SECONDS)


FAMILIES_AND_KINDS = [*product(NATIVE_FAMILIES, ["torch", "kernels"]), ("opt", "torch")]


@pytest.mark.parametrize(("family", "kind"), FAMILIES_AND_KINDS)
def test_greedy_text_equals_that_of_transformers_alone_and_in_a_mixed_batch(
    family: str, kind: str
) -> None:
    wanted = [generated(family, prompt) for prompt in PROMPTS]
    greedy = [request(family, i, p, strategy="greedy") for i, p in enumerate(PROMPTS)]
    alone = [run_all(family, [asked], 1, kind)[asked.job_id].text for asked in greedy]
    assert alone == wanted
    others = [
        request(family, 100 + i, PROMPTS[i % len(PROMPTS)], **STRATEGIES[i % len(STRATEGIES)])
        for i in range(14)
    ]
    mixed = [*greedy, *others]
    random.Random(0).shuffle(mixed)
    together = run_all(family, mixed, 6, kind)
    assert [together[asked.job_id].text for asked in greedy] == wanted


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_a_penalised_greedy_text_equals_that_of_transformers(family: str) -> None:
    asked = request(family, 0, PROMPTS[1], strategy="greedy", repetition_penalty=1.5)
    assert run_all(family, [asked], 1)["0"].text == generated(family, PROMPTS[1], 1.5)


@exact_kinds
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_beam_search_writes_the_text_of_transformers(family: str, kind: str) -> None:
    folder = tiny_model(family)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked, wanted = [], []
    for job, prompt in enumerate(PROMPTS):
        options: dict[str, Any] = {
            "num_beams": 2 + job,
            "length_penalty": (0.5, 1.0, -1.0, 2.0, 0.0)[job],
        }
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_NEW,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        wanted.append(in_whole_characters(folder, written[0, ids.shape[1] :].tolist()))
        asked.append(request(family, job, prompt, strategy="beam", **options))
    results = run_all(family, asked, 16, kind)
    assert [results[each.job_id].text for each in asked] == wanted


@kinds
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_two_hundred_jobs_give_the_same_texts_in_any_order_and_batch_size(
    family: str, kind: str
) -> None:
    """Run all requests in varying batches, slots and orders."""
    rng = random.Random(1)
    requests = [
        request(
            family,
            job,
            rng.choice(PROMPTS) + str(job),
            **STRATEGIES[job % len(STRATEGIES)] | {"max_new_tokens": rng.randint(1, 30)},
        )
        for job in range(200)
    ]
    first = {job: r.text for job, r in run_all(family, requests, 1, kind).items()}
    for num_slots in (5, 32):
        rng.shuffle(requests)
        again = {job: r.text for job, r in run_all(family, requests, num_slots, kind).items()}
        assert again == first


@pytest.mark.parametrize("kind", ["torch", "int8"])
def test_as_many_texts_at_once_as_a_setting_allows_are_the_same(kind: str) -> None:
    """More batch entries than the kernels' buffers hold, including beam searches."""
    beam = {"strategy": "beam", "num_beams": 8}
    requests = [
        request("llama", job, f"{job} x", **(beam if job % 50 == 0 else STRATEGIES[job % 9]))
        for job in range(700)
    ]
    requests = [replace(r, parameters=replace(r.parameters, max_new_tokens=2)) for r in requests]
    few = run_all("llama", requests[::6], 8, kind)
    many = run_all("llama", requests, 1024, kind)
    assert {job: many[job].text for job in few} == {job: r.text for job, r in few.items()}
    assert not any(result.error for result in many.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"strategy": "top_k", "top_k": 1}, {"strategy": "greedy"}),
        ({"strategy": "sampling", "temperature": 0.0}, {"strategy": "greedy"}),
        ({"strategy": "top_k", "top_k": 400, "temperature": 0.9}, None),
        ({"strategy": "top_p", "top_p": 1.0, "temperature": 0.9}, None),
        ({"strategy": "min_p", "min_p": 0.0, "temperature": 0.9}, None),
        ({"strategy": "typical", "typical_p": 1.0, "temperature": 0.9}, None),
        ({"strategy": "custom", "temperature": 0.9}, None),
        (
            {"strategy": "custom", "top_k": 10, "temperature": 0.9},
            {"strategy": "top_k", "top_k": 10, "temperature": 0.9},
        ),
        (
            {"strategy": "custom", "typical_p": 0.8, "repetition_penalty": 1.2},
            {"strategy": "typical", "typical_p": 0.8, "repetition_penalty": 1.2},
        ),
    ],
)
def test_identities_hold_for_whole_texts(one: dict[str, Any], other: dict[str, Any] | None) -> None:
    other = other or {"strategy": "sampling", "temperature": 0.9}
    first = run_all("llama", [request("llama", 5, PROMPTS[0], **one)], 1)["5"].text
    second = run_all("llama", [request("llama", 5, PROMPTS[0], **other)], 1)["5"].text
    assert first == second


def test_a_prompt_of_many_chunks_does_not_hold_up_the_others() -> None:
    """While the long prompt is computed, the short sequence starts and ends."""
    family = "llama"
    order: list[str] = []
    engine = InferenceEngine({family: loaded(family, 2)}, num_slots=2)
    long_prompt = "x " * 115
    engine.start()
    try:
        short = engine.submit(
            request(family, 1, "T", strategy="sampling", max_new_tokens=20),
            lambda _: order.append("short"),
        )
        long = engine.submit(
            request(family, 2, long_prompt, strategy="sampling", max_new_tokens=5),
            lambda _: order.append("long"),
        )
        assert long.result(PATIENCE_SECONDS).num_completion_tokens <= 5
        short.result(PATIENCE_SECONDS)
    finally:
        engine.stop(PATIENCE_SECONDS)
    assert long.num_prompt_tokens > 128
    assert order[0] == "short"


WAYS = [*product(["llama", "gpt_neo"], KINDS), ("llama", "bfloat16"), ("opt", "torch")]


@pytest.mark.parametrize(("family", "kind"), WAYS)
def test_prompts_that_are_known_or_taken_out_of_turn_change_no_text(family: str, kind: str) -> None:
    """Long and short prompts together, most of them alike, then all again from the prefix cache."""
    prompts = ["x " * 60, "x " * 30 + "T", "T", "The quick brown fox " * 3, "y " * 100, "x " * 60]
    requests = [
        request(family, job, prompt, strategy="sampling", max_new_tokens=6)
        for job, prompt in enumerate(prompts * 2)
    ]
    alone: dict[str, str] = {}
    for asked in requests:
        fresh.cache_clear()
        alone |= {asked.job_id: run_all(family, [asked], 1, kind, fresh)[asked.job_id].text}
    engine = InferenceEngine({family: fresh(family, 4, kind)}, num_slots=4)
    engine.start()
    try:
        with capture_logs() as logs:
            for _ in range(2):
                generations = [engine.submit(asked) for asked in requests]
                for asked, generation in zip(requests, generations, strict=True):
                    assert generation.result(PATIENCE_SECONDS).text == alone[asked.job_id]
    finally:
        engine.stop(PATIENCE_SECONDS)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_deltas_make_the_text_and_never_show_half_a_character(family: str) -> None:
    engine = InferenceEngine({family: loaded(family, 4)}, num_slots=4)
    engine.start()
    try:
        for seed in range(6):
            shown: list[str] = []
            asked = request(family, seed, "你好", strategy="sampling", temperature=2.0)
            generation = engine.submit(asked, lambda delta: shown.append(delta.text))  # noqa: B023
            result = generation.result(PATIENCE_SECONDS)
            assert "".join(shown) == result.text
    finally:
        engine.stop(PATIENCE_SECONDS)


def test_bfloat16_runs_through_the_engine() -> None:
    spec = ModelSpec("llama", str(tiny_model("llama")), None, "bfloat16", True, "")
    model = load(spec, cache_dir=Path("/x"), dtype="bfloat16", num_slots=2, report=lambda _: None)
    assert model.info.dtype == "bfloat16"
    engine = InferenceEngine({"llama": model}, num_slots=2)
    engine.start()
    engine.warm_up()
    engine.stop(PATIENCE_SECONDS)
