"""Which sequences run in which slots, tested without torch."""

from __future__ import annotations

import pytest

from tests.unit.engine.without_torch import run_without_torch
from textmill.core.strategies import DecodingParameters
from textmill.engine.requests import Delta, Generation, GenerationRequest
from textmill.engine.scheduler import Scheduler
from textmill.engine.sequence import TokenSequence


class Characters:
    """Token ids are code points."""

    def push(self, token: int) -> str:
        return chr(token)

    def special_text(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def a_sequence(
    prompt_tokens: int = 3,
    model: str = "m",
    deadline: float | None = None,
    shown: list[Delta] | None = None,
    context_length: int = 100,
    **parameters: object,
) -> TokenSequence:
    chosen = DecodingParameters(
        **{"strategy": "greedy", "max_new_tokens": 5, "seed": 0, **parameters}  # type: ignore[arg-type]
    )
    generation = Generation(GenerationRequest("j", model, "", chosen, deadline), prompt_tokens)
    return TokenSequence(
        generation,
        list(range(prompt_tokens)),
        detokenizer=Characters(),
        eos_token_ids=frozenset({0}),
        context_length=context_length,
        on_delta=shown.append if shown is not None else None,
    )


def test_the_lowest_free_slots_go_to_those_that_waited_longest() -> None:
    scheduler = Scheduler(2)
    first, second, third = (a_sequence() for _ in range(3))
    for sequence in (first, second, third):
        scheduler.add(sequence)
    scheduler.admit()
    assert (first.slots, second.slots, third.slots) == ((0,), (1,), ())
    assert (scheduler.num_active, scheduler.num_waiting) == (2, 1)
    scheduler.remove(first)
    scheduler.admit()
    assert third.slot == 0
    assert (scheduler.num_active, scheduler.num_waiting) == (2, 0)


def test_models_have_slots_of_their_own_but_share_the_number() -> None:
    scheduler = Scheduler(3)
    sequences = [a_sequence(model=model) for model in "abab"]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduler.admit()
    assert [s.slots for s in sequences] == [(0,), (0,), (1,), ()]


def test_who_does_not_fit_into_memory_waits_and_is_passed_by_as_many_as_there_are_slots() -> None:
    """Ten bytes a token; a prompt of 3 and 5 new tokens may grow to 80."""
    scheduler = Scheduler(3, cache_bytes=200, bytes_per_token={"m": 10})
    small = [a_sequence() for _ in range(7)]
    large = a_sequence(max_new_tokens=12)  # 150 bytes
    for sequence in (small[0], large, *small[1:]):
        scheduler.add(sequence)
    assert scheduler.admit() == small[:2]
    for done, next_one in ((small[0], small[2]), (small[1], small[3])):
        scheduler.remove(done)
        assert scheduler.admit() == [next_one]
    scheduler.remove(small[2])
    assert scheduler.admit() == []  # three have passed it
    scheduler.remove(small[3])
    assert scheduler.admit() == [large]
    scheduler.remove(large)
    assert scheduler.admit() == small[4:6]


def test_a_beam_search_is_not_passed_for_ever_either() -> None:
    scheduler = Scheduler(2)
    first, second = a_sequence(), a_sequence()
    wide, later = a_sequence(), [a_sequence() for _ in range(5)]
    wide.width = 2
    for sequence in (first, wide, second, *later):
        scheduler.add(sequence)
    assert scheduler.admit() == [first, second]
    scheduler.remove(first)
    assert scheduler.admit() == [later[0]]
    scheduler.remove(second)
    assert scheduler.admit() == []
    scheduler.remove(later[0])
    assert scheduler.admit() == [wide]


def test_who_alone_is_too_large_runs_alone() -> None:
    scheduler = Scheduler(8, cache_bytes=10, bytes_per_token={"m": 10})
    first, second = a_sequence(), a_sequence()
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.admit() == [first]
    scheduler.remove(first)
    assert scheduler.admit() == [second]


def test_a_text_takes_no_more_memory_than_the_context() -> None:
    scheduler = Scheduler(8, bytes_per_token={"m": 10})
    assert scheduler.num_bytes(a_sequence(max_new_tokens=90_000)) == 1000


def test_a_wide_sequence_takes_several_slots() -> None:
    scheduler = Scheduler(4)
    narrow, wide, last = a_sequence(), a_sequence(), a_sequence()
    wide.width = 3
    for sequence in (narrow, wide, last):
        scheduler.add(sequence)
    assert scheduler.admit() == [narrow, wide]
    assert wide.slots == (1, 2, 3)
    scheduler.remove(narrow)
    assert scheduler.admit() == [last]
    assert last.slots == (0,)


def test_prompts_come_first_then_rows_by_slot() -> None:
    scheduler = Scheduler(3)
    sequences = [a_sequence() for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduler.admit()
    assert scheduler.prefilling("m") == sequences
    assert scheduler.decoding("m") == []
    for sequence in sequences:
        sequence.num_cached = 2
    scheduler.remove(sequences[0])
    newcomer = a_sequence(prompt_tokens=1)  # one token needs no prefill
    scheduler.add(newcomer)
    scheduler.admit()
    assert scheduler.decoding("m") == [newcomer, sequences[1], sequences[2]]
    assert scheduler.decoding("other") == []


def test_due_names_what_was_canceled_or_is_too_late_waiting_or_active() -> None:
    scheduler = Scheduler(1)
    active, waiting, late = a_sequence(), a_sequence(), a_sequence(deadline=5.0)
    for sequence in (active, waiting, late):
        scheduler.add(sequence)
    scheduler.admit()
    waiting.generation.cancel("released")
    waiting.generation.cancel("canceled")  # the first reason counts
    assert scheduler.to_be_ended(4.0) == [(waiting, "released")]
    assert scheduler.to_be_ended(6.0) == [(waiting, "released"), (late, "deadline")]


def test_clear_returns_everything() -> None:
    scheduler = Scheduler(1)
    sequences = [a_sequence(), a_sequence()]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduler.admit()
    assert scheduler.clear() == sequences
    assert not scheduler.has_work


def test_a_sequence_ends_at_its_length_or_at_the_contexts_end() -> None:
    short = a_sequence(max_new_tokens=2)
    assert [short.push(ord("a")), short.push(ord("b"))] == [None, "length"]
    tight = a_sequence(prompt_tokens=98, max_new_tokens=50)
    assert [tight.push(ord("a")), tight.push(ord("b"))] == [None, "length"]


def test_the_end_token_ends_it_and_is_no_part_of_it() -> None:
    shown: list[Delta] = []
    sequence = a_sequence(shown=shown)
    sequence.push(ord("a"))
    assert sequence.push(0) == "stop"
    sequence.finish("stop")
    result = sequence.generation.result(0)
    assert (result.text, result.num_completion_tokens, shown) == ("a", 1, [Delta("a", 1)])


def test_what_was_held_back_for_a_stop_is_shown_at_the_end() -> None:
    shown: list[Delta] = []
    sequence = a_sequence(shown=shown, stop=("xyz",), max_new_tokens=3)
    reasons = [sequence.push(ord(c)) for c in "axy"]
    assert reasons == [None, None, "length"]
    sequence.finish("length")
    assert [delta.text for delta in shown] == ["a", "xy"]
    assert sequence.generation.result(0).text == "axy"


def test_a_result_is_set_once() -> None:
    sequence = a_sequence()
    sequence.finish("canceled")
    sequence.fail(ValueError("too late"))
    assert sequence.generation.result(0).finish_reason == "canceled"


def test_a_result_that_does_not_come_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        a_sequence().generation.result(0)


def test_scheduler_and_sequence_run_without_torch() -> None:
    run_without_torch("from textmill.engine.scheduler import Scheduler; Scheduler(2).admit()")
