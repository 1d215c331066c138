"""Guesses from the text and from a table, and how far ahead they go."""

from __future__ import annotations

import pytest

from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.sampling.uniform import uniform
from textmill.engine.speculation.acceptance import AcceptanceTracker
from textmill.engine.speculation.draft_sampler import draft_sampler_for, likeliest, sampled
from textmill.engine.speculation.ngram_builder import build
from textmill.engine.speculation.ngram_table import NgramTable
from textmill.engine.speculation.proposer import TextIndex, propose


def guesses(
    ids: list[int],
    table: NgramTable | None = None,
    max_tokens: int = 8,
    min_confidence: float = 0.1,
    index: TextIndex | None = None,
) -> list[int]:
    found = propose(
        ids,
        index or TextIndex(),
        table,
        max_tokens=max_tokens,
        min_confidence=min_confidence,
        sample=likeliest,
    )
    return [guess.token for guess in found]


def test_a_repetition_is_continued() -> None:
    assert guesses([1, 2, 3, 4, 5, 9, 1, 2, 3])[:2] == [4, 5]


def test_the_last_occurrence_counts() -> None:
    assert guesses([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3])[0] == 5


def test_a_text_without_repetition_has_no_guesses() -> None:
    assert guesses([1, 2, 3, 4, 5]) == []
    assert guesses([1]) == []


def test_an_index_grows_with_its_text() -> None:
    index = TextIndex()
    ids = [1, 2, 3, 4, 5]
    for token in (1, 2, 3):
        assert guesses(ids, index=index) == []
        ids.append(token)
    assert guesses(ids, index=index)[:2] == [4, 5]


def test_the_table_answers_where_the_text_does_not_repeat() -> None:
    table = build([[7, 8, 9, 10]] * 20, 100)
    assert guesses([1, 7], table) == [8, 9, 10]


@pytest.mark.parametrize("max_tokens", [-1, 0, 1, 2])
def test_there_are_no_more_guesses_than_allowed(max_tokens: int) -> None:
    table = build([[7, 8, 9, 10]] * 20, 100)
    assert len(guesses([1, 7], table, max_tokens)) == max(0, max_tokens)


def test_unlikely_guesses_end_a_draft() -> None:
    table = build([[7, 8, token] for token in range(20, 40)] * 3, 100)
    assert guesses([7], table, min_confidence=0.3) == [8]


def test_a_drawn_candidate_follows_the_random_number_and_the_order_of_ids() -> None:
    candidates = [(9, 0.6), (4, 0.3)]
    assert sampled(candidates, 0.2, 1.0).token == 4
    assert sampled(candidates, 0.4, 1.0).token == 9
    assert sampled(candidates, 0.2, 4.0).token == 9  # at a low temperature nearly always
    assert sampled(candidates, 0.999999, 1.0).token == 9


def test_sampled_strategies_use_the_number_of_the_guessed_position() -> None:
    parameters = DecodingParameters("sampling", 100, seed=3)
    sample = draft_sampler_for(SamplingState(parameters, [1], position=5))
    candidates = [(4, 0.5), (9, 0.5)]
    for place in range(30):
        expected = 4 if uniform(3, 5 + place) < 0.5 else 9
        assert sample(candidates, place).token == expected


def test_greedy_takes_the_likeliest_candidate() -> None:
    parameters = DecodingParameters("greedy", 100, seed=3)
    sample = draft_sampler_for(SamplingState(parameters, [1], position=5))
    assert {sample([(9, 0.5), (4, 0.4)], place).token for place in range(30)} == {9}


def test_failed_guesses_lower_the_pace_and_time_restores_it() -> None:
    tracker = AcceptanceTracker()
    assert tracker.scale == 1.0
    for _ in range(20):
        tracker.note(1.0, 0)
    low = tracker.scale
    assert low < 0.3
    for _ in range(100):
        tracker.note(0.0, 0)
    assert tracker.scale > 0.7
    for _ in range(20):
        tracker.note(1.0, 3)
    assert tracker.scale == 1.25
