"""The engine's loop on a model with known logits: joins, ends, cancels, faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from tests.fakes import EOS, LogitsOf, fake_model, one_hot, spelling
from textmill.core.strategies import DecodingParameters
from textmill.engine import Delta, EngineError, Generation, GenerationRequest, InferenceEngine
from textmill.engine.requests import (
    EngineStopped,
    ModelFault,
    ParametersUnusable,
    PromptTooLong,
    PromptUnusable,
    UnknownModel,
)

PATIENCE_SECONDS = 60.0


@contextmanager
def running(*models: Any, num_slots: int = 4) -> Iterator[InferenceEngine]:
    engine = InferenceEngine({model.name: model for model in models}, num_slots=num_slots)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop(PATIENCE_SECONDS)


def request(prompt: str = "p", model: str = "fake", **changes: Any) -> GenerationRequest:
    deadline = changes.pop("deadline", None)
    parameters = {"strategy": "greedy", "max_new_tokens": 20, "seed": 0, **changes}
    return GenerationRequest("job", model, prompt, DecodingParameters(**parameters), deadline)


def written(engine: InferenceEngine, asked: GenerationRequest) -> tuple[str, str]:
    result = engine.submit(asked).result(PATIENCE_SECONDS)
    return result.text, result.finish_reason


def test_a_text_ends_at_its_end_token_its_length_or_a_stop_string() -> None:
    model, _ = fake_model(spelling("hello world\0", "p"))
    with running(model) as engine:
        assert written(engine, request()) == ("hello world", "stop")
        assert written(engine, request(max_new_tokens=5)) == ("hello", "length")
        assert written(engine, request(stop=("o w",))) == ("hell", "stop")
        assert written(engine, request(stop=("nothing",))) == ("hello world", "stop")


def test_a_text_ends_where_the_context_ends() -> None:
    model, _ = fake_model(spelling("abcdef", "ppp"), context_length=7)
    with running(model) as engine:
        result = engine.submit(request("ppp", max_new_tokens=50)).result(PATIENCE_SECONDS)
        assert (result.text, result.finish_reason) == ("abcd", "length")
        assert (result.num_prompt_tokens, result.num_completion_tokens) == (3, 4)
        with pytest.raises(PromptTooLong, match=r"\b7 tokens.*\b7\b"):
            engine.submit(request("p" * 7))


def test_deltas_grow_into_the_text_and_count_tokens() -> None:
    model, _ = fake_model(spelling("one two STOP", "p"))
    shown: list[Delta] = []
    with running(model) as engine:
        generation = engine.submit(request(stop=("STOP",)), shown.append)
        result = generation.result(PATIENCE_SECONDS)
    assert "".join(delta.text for delta in shown) == result.text == "one two "
    assert not any("S" in delta.text for delta in shown)
    counts = [delta.num_tokens for delta in shown]
    assert counts == sorted(counts)
    assert generation.text_so_far == result.text
    assert generation.num_completion_tokens == result.num_completion_tokens == 12
    assert result.first_token_seconds is not None
    assert generation.done()


def test_rows_join_and_leave_between_steps() -> None:
    model, runner = fake_model(spelling("abcdefgh", "p"))
    runner.gate = threading.Event()
    with running(model, num_slots=2) as engine:
        lengths = [8, 2, 3, 1]
        generations = [engine.submit(request(max_new_tokens=n)) for n in lengths]
        runner.gate.set()
        texts = [g.result(PATIENCE_SECONDS).text for g in generations]
    assert texts == ["abcdefgh", "ab", "abc", "a"]
    assert max(runner.batch_sizes) == 2
    assert runner.slots_seen[-1] <= {0, 1}
    assert runner.num_decode_steps <= 9  # the short ones ran in parallel with the long one


def test_a_cancel_takes_effect_and_keeps_the_text_made_so_far() -> None:
    model, _ = fake_model(spelling("abc", "p"))
    with running(model) as engine:
        begun = threading.Event()
        generation = engine.submit(request(max_new_tokens=90_000), lambda _: begun.set())
        assert begun.wait(PATIENCE_SECONDS)
        generation.cancel()
        result = generation.result(PATIENCE_SECONDS)
    assert result.finish_reason == "canceled"
    assert result.text.startswith("abc"[: len(result.text)])
    assert 1 <= result.num_completion_tokens < 90_000


def test_prompts_that_begin_alike_are_computed_once() -> None:
    """The second waits for the first and copies the prefix; the rest of it is computed."""
    model, runner = fake_model(spelling("ab", "p" * 300))
    prompts = ["p" * 300, "p" * 300, "p" * 250 + "q" * 50, "r" * 300]
    with running(model) as engine:
        runner.gate = threading.Event()
        generations = [engine.submit(request(prompt, max_new_tokens=2)) for prompt in prompts]
        runner.gate.set()
        for generation in generations:
            assert generation.result(PATIENCE_SECONDS).num_completion_tokens == 2
    computed = sum(end - start for _, start, end in runner.prefilled)
    assert computed == 299 + 0 + 49 + 299


def test_a_prompt_that_is_known_entirely_is_no_prompt_that_failed() -> None:
    """Alone in its step it leaves nothing to prefill, which is not to be tried."""
    model, runner = fake_model(spelling("ab", "p" * 300))
    with running(model) as engine, capture_logs() as logs:
        texts = [
            written(engine, request("p" * 300, max_new_tokens=2, **changes))
            for changes in ({}, {}, {"strategy": "beam", "num_beams": 2}, {"seed": 4})
        ]
    assert texts == [("ab", "length")] * 4
    assert runner.prefilled == [(0, 0, 128), (0, 128, 256), (0, 256, 299)]
    assert all(batch for batch in runner.prefill_batches)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


def test_each_prompt_is_announced_before_its_prefill_known_or_not() -> None:
    announced: list[str] = []
    model, _ = fake_model(spelling("ab", "p" * 300))
    engine = InferenceEngine({"fake": model}, num_slots=4, on_prefill=announced.append)
    engine.start()
    try:
        for prompt in ("p" * 300, "p" * 300, "q" * 200):
            written(engine, request(prompt, max_new_tokens=2))
    finally:
        engine.stop(PATIENCE_SECONDS)
    assert announced == ["p" * 300, "p" * 300, "q" * 200]


def test_what_cannot_be_recalled_is_computed() -> None:
    model, runner = fake_model(spelling("ab", "p" * 300))

    def recall(row: Any) -> None:
        row.num_cached = 7
        raise MemoryError("no room for the beginning")

    runner.recall = recall  # type: ignore[method-assign]
    with running(model) as engine, capture_logs() as logs:
        assert written(engine, request("p" * 300, max_new_tokens=2)) == ("ab", "length")
    assert sum(end - start for _, start, end in runner.prefilled) == 299
    assert [entry["event"] for entry in logs] == ["recall_failed"]


def test_a_short_prompt_is_written_while_long_ones_that_came_before_are_read() -> None:
    model, runner = fake_model(spelling("ab", "p" * 20))
    order: list[str] = []

    def note(name: str) -> Callable[[Delta], None]:
        return lambda _: order.append(name)

    with running(model, num_slots=5) as engine:
        runner.prefill_gate = threading.Event()
        longs = [
            engine.submit(request(letter * 4402, max_new_tokens=1), note("long"))
            for letter in "qrst"
        ]
        short = engine.submit(request("p" * 20, max_new_tokens=2), note("short"))
        runner.prefill_gate.set()
        for generation in (*longs, short):
            assert generation.result(PATIENCE_SECONDS).finish_reason == "length"
    assert short.text_so_far == "ab"
    assert order == ["short"] * 2 + ["long"] * 4
    slots = [slot for slot, _, _ in runner.prefilled]
    assert slots.index(4) <= 2  # at most two steps, while the first may have begun alone


def test_a_token_that_the_model_does_not_have_is_refused_at_once() -> None:
    model, _ = fake_model(spelling("abc", "p"))
    with running(model) as engine:
        with pytest.raises(PromptUnusable, match=r"token 256\b.*\b128\b.*tokenizer\.json"):
            engine.submit(request("ab\u0100"))
        assert written(engine, request(max_new_tokens=3)) == ("abc", "length")


def test_memory_bounds_how_many_run_and_none_is_lost() -> None:
    model, runner = fake_model(spelling("abcd", "p"))
    engine = InferenceEngine(
        {"fake": model}, num_slots=4, cache_bytes=2 * 5 * runner.bytes_per_token
    )
    runner.gate = threading.Event()
    engine.start()
    try:
        generations = [engine.submit(request(max_new_tokens=4)) for _ in range(6)]
        runner.gate.set()
        texts = [generation.result(PATIENCE_SECONDS).text for generation in generations]
    finally:
        engine.stop(PATIENCE_SECONDS)
    assert texts == ["abcd"] * 6
    assert max(runner.batch_sizes) == 2


def test_a_texts_slots_are_given_back_when_it_ends() -> None:
    model, runner = fake_model(spelling("abcd", "p"))
    with running(model) as engine:
        written(engine, request())
        beam = request(strategy="beam", num_beams=3, max_new_tokens=4)
        assert written(engine, beam)[1] == "length"
    assert sorted(runner.released) == [0, 0, 1, 2]


def branching(ids: list[int]) -> torch.Tensor:
    """Greedy decoding gives a, c; the likeliest sequence is b, d."""
    table = {"a": {"c": 0.5, "d": 0.5}, "b": {"d": 1.0}, "p": {"a": 0.6, "b": 0.4}}
    chances = torch.full((128,), 1e-9)
    for letter, chance in table.get(chr(ids[-1]), {"e": 1.0}).items():
        chances[ord(letter)] = chance
    return chances.log()


def test_beam_search_finds_the_text_that_greedy_misses_beside_other_rows() -> None:
    model, runner = fake_model(branching)
    shown: list[Delta] = []
    with running(model) as engine:
        runner.gate = threading.Event()
        asked = request(strategy="beam", num_beams=2, max_new_tokens=2)
        beam = engine.submit(asked, shown.append)
        greedy = engine.submit(request(max_new_tokens=2))
        runner.gate.set()
        result = beam.result(PATIENCE_SECONDS)
        assert greedy.result(PATIENCE_SECONDS).text[0] == "a"
    assert (result.text, result.finish_reason, result.num_completion_tokens) == ("bd", "length", 2)
    assert "".join(delta.text for delta in shown) == "bd"
    assert 3 in runner.batch_sizes


def test_beam_search_heeds_stop_strings_cancels_and_traces() -> None:
    model, _ = fake_model(branching)
    with running(model) as engine:
        options: dict[str, Any] = {"strategy": "beam", "num_beams": 2}
        assert written(engine, request(max_new_tokens=4, stop=("de",), **options)) == ("b", "stop")
        traced = engine.submit(request(max_new_tokens=3, trace=True, **options))
        trace = traced.result(PATIENCE_SECONDS).trace
        assert trace is not None
        assert [(step.text, step.rank) for step in trace] == [("b", 2), ("d", 1), ("e", 1)]
        assert trace[0].logprob == pytest.approx(torch.tensor(0.4).log().item(), abs=1e-5)
        long = engine.submit(request(max_new_tokens=90_000, **options))
        while long.num_completion_tokens == 0:
            time.sleep(0.001)
        long.cancel()
        result = long.result(PATIENCE_SECONDS)
    assert result.finish_reason == "canceled"
    assert result.text.startswith("bde"[: len(result.text)])


def test_what_waits_can_be_canceled_too() -> None:
    model, runner = fake_model(spelling("abc", "p"))
    runner.gate = threading.Event()
    with running(model, num_slots=1) as engine:
        first = engine.submit(request(max_new_tokens=4))
        second = engine.submit(request(max_new_tokens=4))
        second.cancel("released")
        runner.gate.set()
        assert second.result(PATIENCE_SECONDS).finish_reason == "released"
        assert second.result(0).num_completion_tokens == 0
        assert first.result(PATIENCE_SECONDS).finish_reason == "length"


def test_a_deadline_ends_a_text() -> None:
    model, _ = fake_model(spelling("abc", "p"))
    with running(model) as engine:
        assert written(engine, request(deadline=time.monotonic() - 1)) == ("", "deadline")


def test_what_cannot_be_written_is_refused_at_once() -> None:
    model, _ = fake_model(spelling("abc", "p"))
    with running(model) as engine:
        for error, asked in (
            (UnknownModel, request(model="other")),
            (PromptUnusable, request("")),
            (ParametersUnusable, request(strategy="custom", logit_bias=((10**6, 1.0),))),
        ):
            with pytest.raises(error):
                engine.submit(asked)
    with pytest.raises(EngineStopped):
        engine.submit(request())


def test_a_listener_that_raises_ends_its_own_text_alone() -> None:
    model, _ = fake_model(spelling("abcdef", "p"))

    def listen(_: Delta) -> None:
        raise RuntimeError("nobody listens")

    with running(model) as engine:
        bad = engine.submit(request(), listen)
        good = engine.submit(request(max_new_tokens=6))
        assert good.result(PATIENCE_SECONDS).text == "abcdef"
        result = bad.result(PATIENCE_SECONDS)
        assert result.finish_reason == "error"
        assert isinstance(result.error, RuntimeError)


def failing(times: int, then: LogitsOf) -> LogitsOf:
    left = [times]

    def logits_of(ids: list[int]) -> torch.Tensor:
        if left[0]:
            left[0] -= 1
            raise ValueError("the model is broken")
        return then(ids)

    return logits_of


def test_an_exception_in_a_step_fails_its_rows_and_the_loop_goes_on() -> None:
    model, _ = fake_model(failing(1, spelling("abc\0", "p")))
    with running(model) as engine:
        result = engine.submit(request()).result(PATIENCE_SECONDS)
        assert (result.finish_reason, str(result.error)) == ("error", "the model is broken")
        assert written(engine, request()) == ("abc", "stop")


def test_numbers_that_are_not_finite_fail_their_row_alone() -> None:
    def logits_of(ids: list[int]) -> torch.Tensor:
        if ids[0] == ord("n"):
            return torch.full((128,), torch.nan)
        return spelling("abc\0", "p")(ids)

    model, runner = fake_model(logits_of)
    runner.gate = threading.Event()
    with running(model) as engine:
        bad, good = engine.submit(request("n")), engine.submit(request("p"))
        runner.gate.set()
        assert good.result(PATIENCE_SECONDS).text == "abc"
        assert isinstance(bad.result(PATIENCE_SECONDS).error, ModelFault)
    assert len(runner.wiped) == 1


def test_a_stop_ends_what_runs_with_an_error() -> None:
    model, _ = fake_model(spelling("abc", "p"))
    begun = threading.Event()
    with running(model, num_slots=1) as engine:
        active = engine.submit(request(max_new_tokens=90_000), lambda _: begun.set())
        waiting = engine.submit(request())
        assert begun.wait(PATIENCE_SECONDS)
    for generation in (active, waiting):
        result = generation.result(PATIENCE_SECONDS)
        assert result.finish_reason == "error"
        assert isinstance(result.error, EngineStopped)


def test_when_the_thread_dies_results_and_submissions_raise() -> None:
    model, _ = fake_model(spelling("abc", "p"))

    def die() -> None:
        raise SystemError("out of everything")

    with running(model) as engine:
        engine.submit(request(max_new_tokens=1)).result(PATIENCE_SECONDS)
        begun = threading.Event()
        generation = engine.submit(request(max_new_tokens=90_000), lambda _: begun.set())
        assert begun.wait(PATIENCE_SECONDS)
        engine._step = die  # type: ignore[method-assign]
        with pytest.raises(EngineStopped):
            generation.result(PATIENCE_SECONDS)
        engine._thread.join(PATIENCE_SECONDS)
        with pytest.raises(EngineStopped):
            engine.submit(request())


def test_several_models_take_turns() -> None:
    first, _ = fake_model(spelling("abc\0", "p"), name="first")
    second, _ = fake_model(spelling("xyz\0", "p"), name="second")
    with running(first, second, num_slots=2) as engine:
        engine.warm_up()
        asked = [engine.submit(request(model=name)) for name in ("first", "second") * 5]
        texts = [generation.result(PATIENCE_SECONDS).text for generation in asked]
    assert texts == ["abc", "xyz"] * 5


def test_prompts_of_one_model_are_read_in_small_chunks_while_another_one_writes() -> None:
    first, _ = fake_model(spelling("abc", "p"), name="first")
    second, runner = fake_model(spelling("xyz", "q" * 900), name="second")
    with running(first, second) as engine:
        begun = threading.Event()
        long = engine.submit(request(model="first", max_new_tokens=90_000), lambda _: begun.set())
        assert begun.wait(PATIENCE_SECONDS)
        asked = request("q" * 900, model="second", max_new_tokens=3)
        assert written(engine, asked) == ("xyz", "length")
        long.cancel()
        long.result(PATIENCE_SECONDS)
    assert runner.decoding_seen == [1] * 8


def test_a_model_joins_while_another_writes() -> None:
    first, runner = fake_model(spelling("abc", "p"), name="first")
    runner.gate = threading.Event()
    second, _ = fake_model(spelling("xyz", "p"), name="second")
    with running(first) as engine:
        begun = threading.Event()
        long = engine.submit(request(model="first", max_new_tokens=90_000), lambda _: begun.set())
        runner.gate.set()
        assert begun.wait(PATIENCE_SECONDS)
        with pytest.raises(UnknownModel):
            engine.submit(request(model="second"))
        engine.add_model(second)
        assert not long.done()
        assert written(engine, request(model="second", max_new_tokens=3)) == ("xyz", "length")
        long.cancel()
        assert long.result(PATIENCE_SECONDS).finish_reason == "canceled"


def test_a_model_that_joins_is_weighed_against_the_memory() -> None:
    first, _ = fake_model(spelling("a", "p"), name="first")
    second, runner = fake_model(spelling("b", "p"), name="second")
    runner.gate = threading.Event()
    engine = InferenceEngine(
        {"first": first}, num_slots=8, cache_bytes=2 * 21 * runner.bytes_per_token
    )
    engine.start()
    try:
        runner.gate.set()
        engine.add_model(second)
        runner.gate.clear()
        runner.batch_sizes.clear()
        texts = [engine.submit(request(model="second", max_new_tokens=20)) for _ in range(4)]
        runner.gate.set()
        assert [text.result(PATIENCE_SECONDS).text for text in texts] == ["b" * 20] * 4
        assert max(runner.batch_sizes) == 2
    finally:
        engine.stop(PATIENCE_SECONDS)


def test_a_model_that_cannot_write_is_not_held_and_disturbs_no_other() -> None:
    good, _ = fake_model(spelling("abc", "p"), name="good")

    def broken(ids: list[int]) -> torch.Tensor:
        raise RuntimeError("no such layer")

    bad, _ = fake_model(broken, name="bad")
    with running(good) as engine:
        with pytest.raises(
            EngineError, match=r"The model bad cannot generate text: .*no such layer"
        ):
            engine.add_model(bad)
        with pytest.raises(UnknownModel):
            engine.submit(request(model="bad"))
        assert written(engine, request(model="good", max_new_tokens=3)) == ("abc", "length")


def test_a_change_that_fails_fails_for_whoever_asked_for_it() -> None:
    model, _ = fake_model(spelling("abc", "p"))

    def change() -> None:
        raise MemoryError("not enough")

    with running(model) as engine:
        with pytest.raises(MemoryError):
            engine._between_steps(change)
        assert written(engine, request(max_new_tokens=3)) == ("abc", "length")


def test_no_model_joins_an_engine_that_has_stopped() -> None:
    model, _ = fake_model(spelling("abc", "p"))
    late, _ = fake_model(spelling("abc", "p"), name="late")
    with running(model) as engine:
        pass
    with pytest.raises(EngineStopped):
        engine.add_model(late)


def test_an_engine_that_stops_leaves_nobody_waiting_for_a_model_to_join() -> None:
    """The model is tried out when the stop comes."""
    model, _ = fake_model(spelling("abc", "p"))
    late, runner = fake_model(spelling("abc", "p"), name="late")
    runner.gate = threading.Event()
    failures: list[Exception] = []

    def add() -> None:
        try:
            engine.add_model(late)
        except Exception as error:
            failures.append(error)

    with running(model) as engine:
        thread = threading.Thread(target=add)
        thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not engine.num_active:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        stop = threading.Thread(target=engine.stop, args=(PATIENCE_SECONDS,))
        stop.start()
        runner.gate.set()
        stop.join(PATIENCE_SECONDS)
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert not failures or isinstance(failures[0], EngineStopped)


def test_numbers_are_counted() -> None:
    model, runner = fake_model(spelling("abc\0", "p"))
    with running(model) as engine:
        before = engine.step_count
        written(engine, request())
        statistics = engine.statistics()
        assert engine.step_count > before
    assert statistics.num_tokens == 4  # the end token is made too
    assert statistics.num_steps == runner.num_decode_steps
    assert statistics.mean_occupancy == pytest.approx(1 / 4)
    assert statistics.tokens_per_second > 0
    assert (engine.num_active, engine.num_waiting) == (0, 0)


def test_a_trace_has_an_entry_for_every_token_of_the_text() -> None:
    model, _ = fake_model(spelling("abc\0", "p"))
    with running(model) as engine:
        result = engine.submit(request(trace=True)).result(PATIENCE_SECONDS)
        plain = engine.submit(request()).result(PATIENCE_SECONDS)
    assert result.trace is not None
    assert [token.text for token in result.trace] == ["a", "b", "c"]
    assert plain.trace is None


def test_many_threads_may_submit_at_once() -> None:
    model, _ = fake_model(spelling("abc\0", "p"))
    results: list[Generation] = []
    with running(model, num_slots=3) as engine:
        work: Callable[[], None] = lambda: results.extend(  # noqa: E731
            engine.submit(request()) for _ in range(20)
        )
        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert [g.result(PATIENCE_SECONDS).text for g in results] == ["abc"] * 100


def test_one_hot_logits_are_what_they_say() -> None:
    assert int(one_hot(EOS).argmax()) == EOS
