"""Best-effort calls are limited in time and raise nothing."""

from __future__ import annotations

import threading
import time

import pytest

from textmill.backend.services.best_effort import NUM_THREADS, BestEffort
from textmill.core.circuit_breaker import CircuitBreaker


@pytest.fixture
def held() -> threading.Event:
    return threading.Event()


def never_open() -> CircuitBreaker:
    return CircuitBreaker(pause_seconds=0.0)


def test_a_call_in_time_returns_its_result() -> None:
    effort = BestEffort("test", wait_seconds=20)
    assert [effort.ask(lambda n=n: n * 2) for n in range(5)] == [0, 2, 4, 6, 8]  # type: ignore[misc]


@pytest.mark.parametrize("error", [ValueError("x"), OSError(5, "x"), RuntimeError("x")])
def test_a_failed_call_returns_none_and_raises_nothing(error: Exception) -> None:
    def fail() -> int:
        raise error

    effort = BestEffort("test", wait_seconds=20, breaker=never_open())
    assert effort.ask(fail) is None
    assert effort.ask(lambda: 7) == 7


def test_any_number_of_hanging_calls_is_abandoned(held: threading.Event) -> None:
    effort = BestEffort("test", wait_seconds=0.01, breaker=never_open())
    started = time.monotonic()
    assert [effort.ask(held.wait) for _ in range(3 * NUM_THREADS)] == [None] * (3 * NUM_THREADS)
    assert time.monotonic() - started < 20  # and not for ever
    held.set()


def test_a_call_that_was_abandoned_before_it_started_is_not_made(held: threading.Event) -> None:
    effort = BestEffort("test", wait_seconds=0.01, breaker=never_open())
    for _ in range(NUM_THREADS):
        effort.ask(held.wait)
    made: list[int] = []
    effort.ask(lambda: made.append(1))
    held.set()
    patient = BestEffort("test", wait_seconds=20, breaker=never_open())
    patient.ask(lambda: None)
    effort._wait_seconds = 20
    effort.ask(lambda: made.append(2))
    assert made == [2]


def test_after_a_failure_calls_are_skipped_for_a_while() -> None:
    now = 100.0
    effort = BestEffort("test", wait_seconds=20, breaker=CircuitBreaker(2.0, lambda: now))
    assert effort.ask(lambda: 1 / 0) is None
    assert effort.ask(lambda: 1) is None
    now = 102.0
    assert effort.ask(lambda: 1) == 1
    assert effort.ask(lambda: 2) == 2
