"""The circuit breaker, and the event bus behind it, under a clock that the test moves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from textmill.core.circuit_breaker import CircuitBreaker
from textmill.core.events import EventBus, EventsUnavailable, started


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRedis:
    """Counts the calls that reach it, and fails them on request."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.error: Exception | None = None

    def ping(self) -> bool:
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        return True

    def pipeline(self, **_: Any) -> FakeRedis:
        return self

    def xadd(self, *_: Any, **__: Any) -> None:
        """Queued, as the rest of a pipeline."""

    expire = publish = xadd

    def execute(self, **_: Any) -> list[Any]:
        self.ping()
        return []


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker(2.0, clock)


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def bus(breaker: CircuitBreaker, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> EventBus:
    bus = EventBus("redis://127.0.0.1:1/0", breaker)
    monkeypatch.setattr(bus, "_redis", redis)
    return bus


def test_a_closed_breaker_lets_everybody_call(breaker: CircuitBreaker) -> None:
    assert all(breaker.may_call() for _ in range(3))
    breaker.note_success()
    assert breaker.may_call()


def test_after_a_failure_nobody_calls_until_the_pause_is_over(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    breaker.note_failure()
    assert not breaker.may_call()
    clock.now += 1.99
    assert not breaker.may_call()
    clock.now += 0.01
    assert breaker.may_call()


def test_one_caller_a_pause_tries_and_its_success_lets_all_in(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    breaker.note_failure()
    clock.now += 2
    assert [breaker.may_call() for _ in range(3)] == [True, False, False]
    breaker.note_success()
    assert [breaker.may_call() for _ in range(3)] == [True, True, True]


def test_of_many_threads_only_one_tries_a_server_that_failed(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    breaker.note_failure()
    clock.now += 2
    together = threading.Barrier(8)

    def ask(_: int) -> bool:
        together.wait()
        return breaker.may_call()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1


def test_a_frozen_redis_is_asked_once_a_pause(
    bus: EventBus, redis: FakeRedis, clock: FakeClock
) -> None:
    redis.error = RedisTimeoutError("Timeout reading from socket")
    for _ in range(5):
        with pytest.raises(EventsUnavailable):
            bus.publish([started("j", 1)])
        assert not bus.ping()
    bus.request_cancel("j")
    bus.forget("j")
    assert redis.num_calls == 1
    clock.now += 2
    redis.error = None
    bus.publish([started("j", 1)])
    assert bus.ping()


def test_an_answer_that_refuses_opens_nothing(bus: EventBus, redis: FakeRedis) -> None:
    redis.error = ResponseError("OOM command not allowed")
    for _ in range(3):
        with pytest.raises(EventsUnavailable):
            bus.publish([started("j", 1)])
    assert redis.num_calls == 3
