"""Guessing ahead changes no text: every result equals that without guesses."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.kernels import library
from tests.tiny_models import NATIVE_FAMILIES
from tests.unit.engine.test_texts import PROMPTS, STRATEGIES, fresh
from textmill.core.strategies import DecodingParameters
from textmill.engine import Delta, EngineStatistics, GenerationRequest, InferenceEngine
from textmill.engine.models.loading import LoadedModel
from textmill.engine.models.weights import Float32
from textmill.engine.speculation.ngram_builder import build
from textmill.engine.speculation.ngram_table import NgramTable

PATIENCE_SECONDS = 120.0
NUM_NEW = 48
pytestmark = pytest.mark.skipif(library() is None, reason="needs the compiled kernels")


@dataclass(frozen=True)
class Run:
    results: list[Any]
    deltas: list[list[Delta]]
    statistics: EngineStatistics


def run(model: LoadedModel, prompts: tuple[str, ...], *, speculates: bool, **given: Any) -> Run:
    """The results of prompts one after the other, without their times."""
    engine = InferenceEngine({"m": model}, num_slots=4, speculates=speculates)
    engine.start()
    results, deltas = [], []
    try:
        for seed, prompt in enumerate(prompts):
            own: list[Delta] = []
            parameters = DecodingParameters(**{"max_new_tokens": NUM_NEW, "seed": seed, **given})
            request = GenerationRequest("j", "m", prompt, parameters)
            result = engine.submit(request, own.append).result(PATIENCE_SECONDS)
            assert result.error is None
            trace: Any = (
                None if result.trace is None else [token.as_json() for token in result.trace]
            )
            results.append(
                replace(result, first_token_seconds=None, decode_seconds=0.0, trace=trace)
            )
            deltas.append(own)
        return Run(results, deltas, engine.statistics())
    finally:
        engine.stop(PATIENCE_SECONDS)


@cache
def table(family: str, kind: str, *, is_right: bool) -> NgramTable:
    """A table of the model's own texts; if it is not right, of texts that it never continues so."""
    model = fresh(family, 4, kind)
    texts = []
    for options in STRATEGIES[:-1]:
        for one in run(model, PROMPTS, speculates=False, trace=True, **options).results:
            texts += [[token["id"] for token in one.trace]] * 2
    if not is_right:
        size = model.info.vocabulary_size
        texts = [[token + place % 2 * 7 for place, token in enumerate(text)] for text in texts]
        texts = [[token % size for token in text] for text in texts]
    return build(texts, model.info.vocabulary_size)


def with_table(family: str, kind: str, *, is_right: bool = True) -> LoadedModel:
    return replace(fresh(family, 4, kind), ngrams=table(family, kind, is_right=is_right))


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("options", STRATEGIES, ids=str)
@pytest.mark.parametrize("kind", ["kernels", "int8"])
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_texts_traces_and_deltas_are_the_same(
    family: str, kind: str, options: dict[str, Any], is_right: bool
) -> None:
    model = with_table(family, kind, is_right=is_right)
    plain = run(model, PROMPTS, speculates=False, trace=True, **options)
    guessed = run(model, PROMPTS, speculates=True, trace=True, **options)
    assert guessed.results == plain.results
    assert guessed.deltas == plain.deltas
    assert plain.statistics.num_drafted == 0
    if options["strategy"] == "beam":
        assert guessed.statistics.num_drafted == 0
    elif is_right and options["strategy"] == "greedy":
        assert guessed.statistics.num_accepted > len(PROMPTS) * NUM_NEW // 4
        assert guessed.statistics.num_steps < plain.statistics.num_steps


@pytest.mark.parametrize("num_new", [1, 2, 3, 5, 8])
def test_no_text_is_longer_than_asked_for(num_new: int) -> None:
    model = with_table("llama", "int8")
    options = {"strategy": "greedy", "max_new_tokens": num_new}
    plain = run(model, PROMPTS, speculates=False, **options)
    assert run(model, PROMPTS, speculates=True, **options).results == plain.results


def test_a_text_ends_at_the_end_of_the_context() -> None:
    model = with_table("llama", "int8")
    options = {"strategy": "greedy", "max_new_tokens": 1000}
    plain = run(model, PROMPTS[:2], speculates=False, **options)
    guessed = run(model, PROMPTS[:2], speculates=True, **options)
    assert guessed.results == plain.results
    assert guessed.statistics.num_accepted > 0


def test_stop_strings_end_a_text_at_the_same_token() -> None:
    model = with_table("llama", "int8")
    whole = run(model, PROMPTS, speculates=False, strategy="greedy").results
    for length in (1, 2, 3):
        stops = tuple(one.text[at : at + length] for one in whole for at in (9, 14, 21))
        stops = tuple(stop for stop in stops if stop)
        options = {"strategy": "greedy", "stop": stops, "trace": True}
        plain = run(model, PROMPTS, speculates=False, **options)
        guessed = run(model, PROMPTS, speculates=True, **options)
        assert guessed.results == plain.results
        assert guessed.deltas == plain.deltas


def test_a_cancel_ends_a_text_at_the_token_at_which_it_comes() -> None:
    model = with_table("llama", "int8")
    engine = InferenceEngine({"m": model}, num_slots=4)
    engine.start()
    try:
        for num_wanted in range(1, 12):
            request = GenerationRequest(
                "j", "m", PROMPTS[0], DecodingParameters("greedy", NUM_NEW, seed=0)
            )
            generations: list[Any] = []

            def cancel(delta: Delta, wanted: int = num_wanted, to: list[Any] = generations) -> None:
                if delta.num_tokens >= wanted:
                    to[0].cancel()

            engine._wake.acquire()  # the engine starts when the callback has its generation
            try:
                generations.append(engine.submit(request, cancel))
            finally:
                engine._wake.release()
            result = generations[0].result(PATIENCE_SECONDS)
            assert result.finish_reason == "canceled"
            text = run(
                model, PROMPTS[:1], speculates=False, strategy="greedy",
                max_new_tokens=result.num_completion_tokens, trace=True,
            )  # fmt: skip
            assert text.deltas[0][-1].num_tokens == result.num_completion_tokens
            earlier = [delta for delta in text.deltas[0] if delta.num_tokens >= num_wanted]
            assert earlier == text.deltas[0][-1:]
        assert engine.statistics().num_accepted > 0
    finally:
        engine.stop(PATIENCE_SECONDS)


def test_a_deadline_ends_a_text_with_a_part_of_the_text() -> None:
    model = with_table("llama", "int8")
    whole = run(model, PROMPTS[:1], speculates=False, strategy="greedy").results[0].text
    engine = InferenceEngine({"m": model}, num_slots=4)
    engine.start()
    try:
        request = GenerationRequest(
            "j",
            "m",
            PROMPTS[0],
            DecodingParameters("greedy", NUM_NEW, seed=0),
            deadline=time.monotonic() + 0.02,
        )
        # Each delta takes a while, as long as the deadline is not past.
        result = engine.submit(request, lambda _: time.sleep(0.004)).result(PATIENCE_SECONDS)
    finally:
        engine.stop(PATIENCE_SECONDS)
    assert result.finish_reason == "deadline"
    assert whole.startswith(result.text)
    assert result.num_completion_tokens < NUM_NEW


def test_sequences_beside_each_other_have_the_same_texts() -> None:
    model = with_table("llama", "int8")
    options: dict[str, Any] = {"strategy": "top_k", "top_k": 10, "temperature": 0.5}
    alone = run(model, PROMPTS, speculates=False, **options).results
    engine = InferenceEngine({"m": model}, num_slots=4)
    engine.start()
    try:
        running = [
            engine.submit(
                GenerationRequest(
                    "j", "m", prompt, DecodingParameters(max_new_tokens=NUM_NEW, seed=i, **options)
                )
            )
            for i, prompt in enumerate(PROMPTS)
        ]
        texts = [generation.result(PATIENCE_SECONDS).text for generation in running]
        assert engine.statistics().num_drafted > 0
    finally:
        engine.stop(PATIENCE_SECONDS)
    assert texts == [one.text for one in alone]


def test_numbers_that_are_not_finite_after_a_wrong_guess_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_table("llama", "int8", is_right=False)
    plain = run(model, PROMPTS[:2], speculates=False, strategy="greedy")
    verify, wiped = model.runner.verify, []  # type: ignore[attr-defined]
    expected = {}
    for prompt, result in zip(PROMPTS, plain.results, strict=False):
        expected[prompt] = result.text

    def broken(entries: Any, drafts: Any) -> Float32:
        logits: Float32 = verify(entries, drafts).copy()
        for entry, draft in zip(entries, drafts, strict=True):
            if len(draft) > 1 and int(logits[0].argmax()) != draft[0]:
                logits[-1] = np.nan
                wiped.append(len(entry.ids))
        return logits

    monkeypatch.setattr(model.runner, "verify", broken)
    guessed = run(model, PROMPTS[:2], speculates=True, strategy="greedy")
    assert guessed.results == plain.results
    assert wiped
