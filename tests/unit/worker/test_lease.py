"""Heartbeat, loops, stall detector and watchdog under a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.worker.fake_parts import FakeEngine, RunnerBench, make_job, result
from textmill.core.errors import StorageUnavailable
from textmill.core.jobs.store import LeaseStatus
from textmill.worker import lease
from textmill.worker import loop as loop_module
from textmill.worker.awake_clock import AwakeClock
from textmill.worker.lease import Heartbeat
from textmill.worker.loop import Loop
from textmill.worker.watchdog import NO_CLAIM_SECONDS, STALL_SECONDS, StallDetector, Watchdog


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


# ---- StallDetector ----------------------------------------------------------------------------


def test_an_engine_that_steps_or_has_nothing_to_do_does_not_stall() -> None:
    engine, clock = FakeEngine(), Clock()
    detector = StallDetector(engine, clock)
    clock.now += 500
    assert detector.stalled_seconds() == 0
    engine.num_active = 1
    for _ in range(10):
        clock.now += 100
        engine.step_count += 1
        assert detector.stalled_seconds() == 0


@pytest.mark.parametrize("attribute", ["num_active", "num_waiting"])
def test_an_engine_that_has_work_and_stands_still_stalls_from_the_last_step_on(
    attribute: str,
) -> None:
    engine, clock = FakeEngine(), Clock()
    detector = StallDetector(engine, clock)
    setattr(engine, attribute, 1)
    detector.stalled_seconds()
    clock.now += 7
    assert detector.stalled_seconds() == 7
    clock.now += 20
    assert detector.stalled_seconds() == 27
    engine.step_count += 1
    assert detector.stalled_seconds() == 0


def test_work_after_a_long_rest_is_not_counted_from_the_rest() -> None:
    engine, clock = FakeEngine(), Clock()
    detector = StallDetector(engine, clock)
    for _ in range(20):  # the heartbeat asks all the time
        clock.now += 5
        detector.stalled_seconds()
    engine.num_waiting = 1
    clock.now += 5
    assert detector.stalled_seconds() <= 5


def test_a_pause_of_the_process_is_no_stall_of_its_engine() -> None:
    engine, clock = FakeEngine(num_active=1), Clock()
    detector = StallDetector(engine, AwakeClock(10.0, clock))
    for _ in range(3):
        clock.now += 5
        detector.stalled_seconds()
        engine.step_count += 1
    clock.now += 3600  # the lid was closed, and the heartbeat is the first to wake
    assert detector.stalled_seconds() < STALL_SECONDS
    for _ in range(5):
        clock.now += 5
        stalled = detector.stalled_seconds()
    assert stalled > STALL_SECONDS  # an engine that does not wake up is one


def test_an_awake_clock_goes_on_and_never_back() -> None:
    clock = Clock()
    awake = AwakeClock(5.0, clock)
    readings = []
    for step in (1.0, 4.0, 100.0, -50.0, 2.0):
        clock.now += step
        readings.append(awake())
    assert readings == [1.0, 5.0, 10.0, 10.0, 12.0]


# ---- Heartbeat --------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunnerBench]:
    bench = RunnerBench()
    bench.store.engine = "database"  # type: ignore[attr-defined]
    bench.store.beats = []  # type: ignore[attr-defined]
    monkeypatch.setattr(lease, "beat", lambda _, state: bench.store.beats.append(state))  # type: ignore[attr-defined]
    yield bench
    bench.runner.stop_jobs(frozenset(bench.runner.attempts()), "released")
    bench.engine.end_canceled()
    bench.join()


def heartbeat_of(bench: RunnerBench) -> Heartbeat:
    store: Any = bench.store
    return Heartbeat(store=store, engine=bench.engine, runner=bench.runner, worker_id="w")  # type: ignore[arg-type]


def test_a_beat_renews_what_is_held_and_says_that_the_worker_is_there(bench: RunnerBench) -> None:
    bench.start(make_job(1, attempt=4))
    heartbeat_of(bench).beat()
    assert bench.store.renewed == [{"job-1": 4}]
    (state,) = bench.store.beats  # type: ignore[attr-defined]
    assert (state.id, state.models, state.num_slots, state.num_active) == ("w", ["m"], 2, 1)
    assert state.tokens_per_second == 7.0


def test_a_stalled_engine_loses_its_leases(
    bench: RunnerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    heartbeat = heartbeat_of(bench)
    heartbeat._stall = StallDetector(bench.engine, clock)
    bench.engine.num_active = 1
    heartbeat.beat()
    clock.now += STALL_SECONDS + 1
    heartbeat.beat()
    assert len(bench.store.renewed) == 1
    assert heartbeat.stalled_seconds > STALL_SECONDS
    bench.engine.step_count += 1
    heartbeat.beat()
    assert len(bench.store.renewed) == 2
    bench.engine.num_active = 0


def test_what_a_stalled_engine_holds_does_not_count_as_living(bench: RunnerBench) -> None:
    heartbeat = heartbeat_of(bench)
    bench.start(make_job(1, attempt=4))
    assert heartbeat.living() == {"job-1": 4}
    heartbeat.stalled_seconds = STALL_SECONDS + 1
    assert heartbeat.living() == {}


def test_what_the_database_says_reaches_the_engine(bench: RunnerBench) -> None:
    canceled, lost = bench.start(make_job(1)), bench.start(make_job(2))
    bench.store.answer = LeaseStatus(frozenset({"job-1", "gone"}), frozenset({"job-2", "gone"}))
    heartbeat_of(bench).save_progress()
    assert (canceled.cancel_reason, lost.cancel_reason) == ("canceled", "lost")
    bench.engine.end_canceled()
    bench.join()
    assert [job_id for job_id, _ in bench.store.finished] == ["job-1"]
    assert bench.store.released == []


def test_progress_is_saved_when_there_is_some(bench: RunnerBench) -> None:
    heartbeat = heartbeat_of(bench)
    bench.start(make_job(1))
    heartbeat.save_progress()
    assert bench.store.saved == []
    bench.engine.write("job-1", "ab\0")
    heartbeat.save_progress()
    heartbeat.save_progress()
    (saved,) = bench.store.saved
    assert (saved.job_id, saved.attempt, saved.text) == ("job-1", 1, "ab\ufffd")
    assert (saved.num_completion_tokens, saved.num_prompt_tokens) == (1, 2)


def test_an_idle_worker_asks_nothing_about_jobs(bench: RunnerBench) -> None:
    bench.store.is_away = True
    heartbeat_of(bench).save_progress()
    assert not bench.store.refused.is_set()


# ---- Loop -------------------------------------------------------------------------------------


class Counter:
    """Counts calls, and lets a test await them."""

    def __init__(self, failing: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.num = 0
        self._failing = failing
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.num += 1
            self._changed.notify_all()
        error = self._failing(self.num)
        if error is not None:
            raise error

    def await_calls(self, num: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.num >= num, 10)


def test_a_loop_calls_at_once_when_stirred_and_no_more_after_its_end() -> None:
    calls = Counter()
    loop = Loop("test", 3600, calls)
    loop.start()
    calls.await_calls(1)
    loop.wake()
    calls.await_calls(2)
    loop.close()
    num = calls.num
    loop.wake()
    assert not loop._thread.is_alive()
    assert calls.num == num


def test_a_loop_outlives_whatever_its_call_raises() -> None:
    errors = [StorageUnavailable("away", retry_after_seconds=1), RuntimeError("bug")]
    calls = Counter(lambda num: errors[num - 1] if num <= 2 else None)
    loop = Loop("test", 0.001, calls)
    loop.start()
    calls.await_calls(4)
    loop.close()


def test_a_loop_that_found_the_database_away_calls_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "RETRY_SECONDS", 0.001)
    calls = Counter(lambda num: StorageUnavailable("", retry_after_seconds=1) if num < 3 else None)
    loop = Loop("test", 3600, calls)
    loop.start()
    calls.await_calls(3)
    loop.close()
    assert calls.num == 3


def test_a_database_that_goes_and_comes_back_is_logged_once_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "RETRY_SECONDS", 0.001)
    calls = Counter(lambda num: StorageUnavailable("", retry_after_seconds=1) if num < 9 else None)
    with capture_logs() as said:
        loop = Loop("test", 0.001, calls)
        loop.start()
        calls.await_calls(12)
        loop.close()
    assert [line["event"] for line in said] == ["database_away", "database_back"]


def test_a_loop_that_was_never_started_or_ends_itself_closes() -> None:
    Loop("never", 1, lambda: None).close()
    loops: list[Loop] = []
    calls = Counter()

    def end() -> None:
        calls()
        loops[0].close()

    loops.append(Loop("itself", 3600, end))
    loops[0].start()
    calls.await_calls(1)
    loops[0]._thread.join(10)
    assert not loops[0]._thread.is_alive()


def test_closing_a_loop_between_two_looks_at_its_flags_ends_it_at_once() -> None:
    class Stirred(threading.Event):
        """Close the loop while its thread is about to begin a turn."""

        def clear(self) -> None:
            loop._closing.set()
            self.set()
            super().clear()

    loop = Loop("test", 3600, lambda: None)
    loop._woken = Stirred()
    loop.start()
    loop._thread.join(10)
    is_left_waiting = loop._thread.is_alive()
    loop.wake()
    assert not is_left_waiting


# ---- Watchdog ---------------------------------------------------------------------------------


@dataclass
class Watched:
    """A watchdog with a worker that a test makes look hungry, blocked or stalled."""

    clock: Clock = field(default_factory=Clock)
    heartbeat: Any = field(default_factory=lambda: SimpleNamespace(stalled_seconds=0.0))
    runner: Any = field(
        default_factory=lambda: SimpleNamespace(num_free=1, is_blocked=False, num_claimed=0)
    )
    has_eligible: bool = True
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dog = Watchdog(
            heartbeat=self.heartbeat,
            runner=self.runner,
            has_eligible=lambda: self.has_eligible,
            end_process=self.reasons.append,
            clock=self.clock,
        )

    def look_for(self, seconds: float) -> None:
        for _ in range(int(seconds // 10)):
            self.dog.look()
            self.clock.now += 10


def test_a_worker_that_could_claim_and_does_not_for_a_minute_is_ended() -> None:
    watched = Watched()
    watched.look_for(NO_CLAIM_SECONDS)
    assert watched.reasons == []
    watched.look_for(20)
    assert watched.reasons
    assert "claimed" in watched.reasons[0]


@pytest.mark.parametrize(
    "change", [{"num_free": 0}, {"is_blocked": True}, {"has_eligible": False}, {"claims": True}]
)
def test_a_worker_that_cannot_or_does_claim_lives(change: dict[str, Any]) -> None:
    watched = Watched()
    watched.has_eligible = change.get("has_eligible", True)
    watched.runner.num_free = change.get("num_free", 1)
    watched.runner.is_blocked = change.get("is_blocked", False)
    for _ in range(30):
        watched.look_for(10)
        if change.get("claims"):
            watched.runner.num_claimed += 1
    assert watched.reasons == []


def test_a_pause_of_the_process_is_no_hunger() -> None:
    watched = Watched()
    watched.dog = Watchdog(
        heartbeat=watched.heartbeat,
        runner=watched.runner,
        has_eligible=lambda: True,
        end_process=watched.reasons.append,
        clock=AwakeClock(20.0, watched.clock),
    )
    watched.look_for(20)
    watched.clock.now += 3600
    watched.look_for(20)
    assert watched.reasons == []


def test_hunger_is_counted_without_breaks() -> None:
    watched = Watched()
    for _ in range(10):
        watched.look_for(50)
        watched.has_eligible = False
        watched.look_for(10)
        watched.has_eligible = True
    assert watched.reasons == []


def test_an_engine_that_hangs_for_a_minute_ends_the_process() -> None:
    watched = Watched(has_eligible=False)
    watched.heartbeat.stalled_seconds = NO_CLAIM_SECONDS + 1
    watched.dog.look()
    assert "engine" in watched.reasons[0]


def test_results_of_the_fakes_are_those_of_the_engine() -> None:
    assert result().finish_reason == "length"
