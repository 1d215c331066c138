"""Whose prompt goes into the cache next, tried without torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.unit.engine.test_scheduler import a_sequence
from tests.unit.engine.without_torch import run_without_torch
from textmill.engine.models.prefixes import num_shared
from textmill.engine.prefilling import SHARED_TOKENS, Prefilling
from textmill.engine.scheduler import Scheduler
from textmill.engine.sequence import TokenSequence

LONG = 4402
CHUNK = 128  # of a runner whose chunks may not be cut anywhere


def prompt(num_tokens: int, seed: int, beginning: tuple[int, ...] = ()) -> TokenSequence:
    sequence = a_sequence(num_tokens, context_length=10_000)
    rng = random.Random(seed)
    sequence.ids = [*beginning, *(rng.randrange(1000) for _ in range(num_tokens - len(beginning)))]
    return sequence


@dataclass
class Steps:
    """Prefills as the engine does, with a budget that may depend on the step."""

    budget: Callable[[int], int]
    chunk_tokens: int | None = None
    active: list[TokenSequence] = field(default_factory=list)
    known: list[list[int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)  # of every chunk
    begun: dict[int, int] = field(default_factory=dict)  # id → step
    done: dict[int, int] = field(default_factory=dict)
    number: int = 0
    prefilling: Prefilling = field(default_factory=Prefilling)

    def add(self, *sequences: TokenSequence) -> None:
        self.active += sequences
        self.begun |= {id(sequence): self.number for sequence in sequences}

    def step(self) -> None:
        waiting = [s for s in self.active if not s.is_prefilled]
        chunks = self.prefilling.plan(
            waiting,
            self.budget(self.number),
            recall=self.recall,
            chunk_tokens=self.chunk_tokens,
        )
        self.number += 1
        self.taken.append(sum(end - s.num_cached for s, end in chunks))
        for sequence, end in chunks:
            self.bounds.append((sequence.num_cached, end))
            sequence.num_cached = end
            if sequence.is_prefilled:
                self.known.append(sequence.ids[:end])
        for sequence in waiting:
            if sequence.is_prefilled:
                self.done.setdefault(id(sequence), self.number)

    def recall(self, sequence: TokenSequence) -> None:
        wanted = sequence.ids[:-1]
        for ids in self.known:
            sequence.num_cached = max(sequence.num_cached, num_shared(ids, wanted))

    def until(self, *sequences: TokenSequence) -> int:
        """Steps until the last of them is in the cache, from when it came."""
        for _ in range(5000):
            if all(s.is_prefilled for s in sequences):
                break
            self.step()
        return max(self.done[id(s)] - self.begun[id(s)] for s in sequences)


def alone(num_tokens: int, budget: Callable[[int], int], chunk_tokens: int | None = None) -> int:
    steps = Steps(budget, chunk_tokens)
    one = prompt(num_tokens, seed=99)
    steps.add(one)
    return steps.until(one)


BUDGETS = [lambda _: 256, lambda _: 12, lambda step: 12 + step % 90]


@pytest.mark.parametrize("budget", BUDGETS, ids=["idle", "busy", "changing"])
@pytest.mark.parametrize("num_long", [1, 4, 60])
@pytest.mark.parametrize("num_tokens", [2, 20, 130, 500])
def test_a_short_prompt_behind_long_ones_waits_for_a_small_multiple_of_its_own_length(
    budget: Callable[[int], int], num_long: int, num_tokens: int
) -> None:
    steps = Steps(budget)
    steps.add(*(prompt(LONG, seed) for seed in range(num_long)))
    for _ in range(3):
        steps.step()
    short = prompt(num_tokens, seed=99)
    steps.add(short)
    before = sum(steps.taken)
    assert steps.until(short) <= 2 * alone(num_tokens, budget) + 1
    assert sum(steps.taken) - before <= 3 * num_tokens + 256


def test_a_prompt_of_twenty_tokens_behind_four_long_ones_is_taken_in_the_next_step() -> None:
    steps = Steps(lambda _: 256)
    steps.add(*(prompt(LONG, seed) for seed in range(4)))
    short = prompt(20, seed=99)
    steps.add(short)
    assert steps.until(short) == 1
    assert steps.taken == [2 * 19]  # no more of the long ones than of itself
    for seed in range(50, 60):
        late = prompt(20, seed)
        steps.add(late)
        assert steps.until(late) == 1


def test_chunks_of_a_runner_that_cuts_at_fixed_places_are_cut_there_alone() -> None:
    steps = Steps(lambda _: CHUNK, CHUNK)
    rng = random.Random(0)
    sequences = [prompt(rng.choice([2, 20, 129, 130, 300, LONG]), seed) for seed in range(40)]
    for sequence in sequences:
        steps.add(sequence)
        steps.step()
    short = prompt(20, seed=99)
    steps.add(short)
    assert steps.until(short) <= 4
    steps.until(*sequences)
    assert all(start % CHUNK == 0 for start, _ in steps.bounds)
    ends = {len(s.ids) - 1 for s in sequences} | {19}
    assert all(end % CHUNK == 0 or end in ends for _, end in steps.bounds)
    assert max(steps.taken) <= CHUNK


@pytest.mark.parametrize("chunk_tokens", [None, CHUNK])
def test_long_prompts_end_though_short_ones_never_stop_coming(chunk_tokens: int | None) -> None:
    """Short prompts arrive as fast as steps compute them; half of the steps are the oldest's."""
    steps = Steps(lambda _: CHUNK, chunk_tokens)
    longs = [prompt(LONG, seed) for seed in range(3)]
    steps.add(*longs)
    number = 1000
    while not all(s.is_prefilled for s in longs):
        for _ in range(4):
            number += 1
            steps.add(prompt(33, seed=number))
        steps.step()
        assert steps.number < 2 * 3 * (LONG // CHUNK + 2)
    ends = [steps.done[id(s)] for s in longs]
    assert ends == sorted(ends)


def test_equal_prompts_are_taken_in_the_order_of_their_coming() -> None:
    steps = Steps(lambda _: 100)
    sequences = [prompt(250, seed) for seed in range(6)]
    steps.add(*sequences)
    steps.until(*sequences)
    ends = [steps.done[id(s)] for s in sequences]
    assert ends == sorted(ends)
    assert steps.number <= 6 * 249 / 100 + 6


def test_no_step_takes_more_than_its_budget_and_few_take_less() -> None:
    steps = Steps(lambda _: 97)
    rng = random.Random(1)
    sequences = [prompt(rng.randrange(2, 900), seed) for seed in range(30)]
    steps.add(*sequences)
    steps.until(*sequences)
    assert max(steps.taken) == 97
    assert sum(steps.taken) == sum(len(s.ids) - 1 for s in sequences)
    assert steps.number <= 1.2 * sum(steps.taken) / 97 + len(sequences)


# ---- shared beginnings -----------------------------------------------------------------------


def test_samples_of_a_run_are_computed_once() -> None:
    steps = Steps(lambda _: 256)
    samples = [prompt(700, seed=5) for _ in range(16)]
    steps.add(*samples)
    steps.until(*samples)
    assert sum(steps.taken) == 699
    assert steps.number == 4  # and one in which the others find it known


def test_a_short_prompt_does_not_wait_for_a_long_one_that_begins_alike() -> None:
    """A common first sentence of 40 tokens does not justify waiting for 4,000 others."""
    steps = Steps(lambda _: 256)
    beginning = tuple(range(5000, 5000 + SHARED_TOKENS + 8))
    steps.add(*(prompt(LONG, seed, beginning) for seed in range(4)))
    steps.step()
    short = prompt(60, seed=99, beginning=beginning)
    steps.add(short)
    assert steps.until(short) == 1


def test_nor_for_a_chain_of_prompts_each_somewhat_longer_than_the_next() -> None:
    steps = Steps(lambda _: 256)
    beginning = tuple(range(5000, 5040))
    chain = [prompt(length, length, beginning) for length in (4400, 2200, 1100, 550, 270, 130)]
    steps.add(*chain)
    short = prompt(60, seed=99, beginning=beginning)
    steps.add(short)
    assert steps.until(short) <= 2


def test_who_waited_for_a_prompt_that_was_canceled_goes_on_alone() -> None:
    steps = Steps(lambda _: 100)
    first, second, third = (prompt(400, seed=5) for _ in range(3))
    steps.add(first, second, third)
    steps.step()
    assert [s.num_cached for s in (first, second, third)] == [100, 0, 0]
    steps.active.remove(first)
    steps.until(second, third)
    assert sum(steps.taken) == 100 + 399


def test_a_prompt_that_is_known_entirely_takes_no_tokens_and_no_turn() -> None:
    steps = Steps(lambda _: 256)
    first = prompt(3000, seed=5)
    steps.add(first)
    steps.until(first)
    before = sum(steps.taken)
    again = prompt(3000, seed=5)
    steps.add(*(prompt(LONG, seed) for seed in range(4)), again)
    assert steps.until(again) == 1
    alone = prompt(3000, seed=5)
    steps = Steps(lambda _: 256, known=steps.known)
    steps.add(alone)
    assert steps.until(alone) == 1
    assert steps.taken == [0]
    assert before == 2999


def test_what_is_known_is_looked_for_once() -> None:
    asked: list[TokenSequence] = []
    prefilling = Prefilling()
    sequences = [prompt(500, seed) for seed in range(5)]
    for _ in range(10):
        prefilling.plan(sequences, 10, recall=asked.append)
    assert asked == sequences


# ---- admission -------------------------------------------------------------------------------


def test_neither_long_texts_hold_up_short_ones_for_ever_nor_short_ones_a_long_one() -> None:
    """At ten bytes a token there is room for 40 tokens; the long sequence needs 38 of them."""
    scheduler = Scheduler(4, cache_bytes=400, bytes_per_token={"m": 10})
    running, long = a_sequence(), a_sequence(max_new_tokens=35)
    scheduler.add(running)
    scheduler.admit()
    scheduler.add(long)
    passed = 0
    while long not in scheduler.admit():
        scheduler.add(a_sequence())  # 8 tokens each, and they never stop coming
        passed += sum(s is not running for s in scheduler.admit())
        scheduler.remove(scheduler.prefilling("m")[0])
        assert passed <= 4
    assert passed == 4
    assert scheduler.num_active == 1


def test_planning_runs_without_torch() -> None:
    run_without_torch(
        "from textmill.engine.prefilling import Prefilling\n"
        "assert Prefilling().plan([], 1, recall=print) == []"
    )
