"""The sweeper and the poller: their calls of the store and of the publisher."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from textmill.core.jobs.leases import HeldLease
from textmill.core.jobs.sweeping import SweepReport
from textmill.worker import sweeper
from textmill.worker.awake_clock import AwakeClock
from textmill.worker.intervals import Intervals
from textmill.worker.poller import Poller
from textmill.worker.sweeper import LeaseObserver, Sweeper

INTERVALS = Intervals()


@dataclass
class FakeStore:
    """Leases and answers as the test wants them."""

    leases: list[HeldLease] = field(default_factory=list)
    taken: list[list[HeldLease]] = field(default_factory=list)
    engine: str = "db"

    def held_leases(self) -> list[HeldLease]:
        return list(self.leases)

    def sweep(self, actor: str, dead: list[HeldLease]) -> SweepReport:
        assert actor == "sweeper:w"
        self.taken.append(dead)
        return SweepReport([("a", "m")], ["b"], ["c"])

    def models_waiting(self) -> list[str]:
        return ["m", "n"]


def lease_of(job_id: str = "j", attempt: int = 1, until: int = 30_000, **values: bool) -> HeldLease:
    return HeldLease(job_id, attempt, until, **{"is_expired": True, "is_orphan": False, **values})


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(sweeper, "unseen_workers", lambda *_: frozenset({"gone"}))
    monkeypatch.setattr(sweeper, "forget", lambda _, worker_id: found.append(worker_id))
    return found


def sweeper_of(store: FakeStore, **living: int) -> tuple[Sweeper, list[str]]:
    tickets: list[str] = []
    made: Any = Sweeper(store, tickets.append, "sweeper:w", living=lambda: living)  # type: ignore[arg-type]
    return made, tickets


def test_a_sweep_repeats_a_ticket_for_every_model_that_waits_and_forgets_the_dead(
    forgotten: list[str],
) -> None:
    made, tickets = sweeper_of(FakeStore())
    made.sweep()
    assert (tickets, forgotten) == (["m", "n"], [])
    made.sweep()  # unseen at two looks: no clock was set in between
    assert forgotten == ["gone"]


@pytest.mark.usefixtures("forgotten")
def test_a_process_never_takes_its_own_living_work_away() -> None:
    own, older, other = lease_of("own", 2), lease_of("own", 1), lease_of("other", is_orphan=True)
    store = FakeStore([own, older, other])
    made, _ = sweeper_of(store, own=2)
    for _ in range(100):
        made.sweep()
    assert not any(own in taken for taken in store.taken)
    assert other in store.taken[0]


class Observed:
    """An observer whose process sweeps every five seconds, and the leases that it sees."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.observer = LeaseObserver(INTERVALS, AwakeClock(INTERVALS.sweep, lambda: self.now))

    def look(self, *leases: HeldLease, after: float = INTERVALS.sweep) -> list[HeldLease]:
        self.now += after
        return self.observer.dead(leases)


def test_an_expired_lease_is_taken_back_when_nobody_renewed_it_for_a_while() -> None:
    observed = Observed()
    lease = lease_of()
    assert [bool(observed.look(lease)) for _ in range(4)] == [False, False, False, True]


def test_a_lease_that_expires_under_the_eyes_of_the_sweeper_is_taken_back_at_once() -> None:
    observed = Observed()
    for _ in range(6):  # silent for 25 s, and valid
        assert observed.look(lease_of(is_expired=False)) == []
    assert observed.look(lease_of(is_expired=True)) == [lease_of()]


def test_after_a_pause_of_the_whole_machine_all_have_time_to_renew() -> None:
    observed = Observed()
    observed.look(lease_of(is_expired=False))
    assert observed.look(lease_of(), after=40.0) == []
    assert observed.look(lease_of(), after=3600.0) == []  # and again
    assert observed.look(lease_of(until=90_000, is_expired=False)) == []
    for number in range(20):
        assert observed.look(lease_of(until=95_000 + number, is_expired=False)) == []


def test_a_clock_that_is_ahead_takes_nothing_from_those_who_renew() -> None:
    observed = Observed()
    for number in range(100):
        assert observed.look(lease_of(until=number)) == []


def test_a_clock_that_was_set_back_does_not_keep_the_dead_alive() -> None:
    observed = Observed()
    lease = lease_of(is_expired=False)
    looks = [bool(observed.look(lease)) for _ in range(12)]
    assert looks.index(True) == (INTERVALS.lease + INTERVALS.silence) / INTERVALS.sweep


def test_the_jobs_of_a_worker_that_is_known_to_be_gone_are_taken_back_at_once() -> None:
    observed = Observed()
    assert observed.look(lease_of(is_expired=False, is_orphan=True)) == []
    assert observed.look(lease_of(is_orphan=True)) == [lease_of(is_orphan=True)]


def test_a_lease_that_is_gone_is_forgotten() -> None:
    observed = Observed()
    for _ in range(3):
        observed.look(lease_of())
    observed.look()
    assert observed.look(lease_of()) == []


class Runner:
    """Counts the calls of ``work`` and holds them until it is let go."""

    def __init__(self, num_free: int) -> None:
        self.num_free = num_free
        self.num_started = 0
        self.gate = threading.Event()
        self._changed = threading.Condition()

    def work(self) -> int:
        with self._changed:
            self.num_started += 1
            self._changed.notify_all()
        self.gate.wait(10)
        return 0

    def await_started(self, num: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_started >= num, 10)


def poller_of(runner: Runner, has_eligible: bool, num_slots: int = 4) -> Poller:
    return Poller(runner, lambda: has_eligible, num_slots)  # type: ignore[arg-type]


def test_the_poller_sets_as_many_to_work_as_slots_are_free() -> None:
    runner = Runner(num_free=3)
    poller = poller_of(runner, has_eligible=True)
    poller.look()
    runner.await_started(3)
    assert runner.num_started == 3
    runner.gate.set()
    poller.close()


@pytest.mark.parametrize(("num_free", "has_eligible"), [(0, True), (2, False)])
def test_the_poller_leaves_a_full_worker_and_an_empty_table_alone(
    num_free: int, has_eligible: bool
) -> None:
    runner = Runner(num_free)
    poller = poller_of(runner, has_eligible)
    poller.look()
    poller.close()
    assert runner.num_started == 0


def test_a_closed_poller_drops_what_it_had_not_started() -> None:
    runner = Runner(num_free=3)
    poller = poller_of(runner, has_eligible=True, num_slots=1)
    poller.look()
    runner.await_started(1)
    poller.close()
    runner.gate.set()
    poller._pool.shutdown(wait=True)
    assert runner.num_started == 1
