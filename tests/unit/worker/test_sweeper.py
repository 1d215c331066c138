"""The sweeper and the poller: what they ask the store, and whom they tell."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from core.sweeping import SweepReport
from worker import sweeper
from worker.poller import Poller
from worker.sweeper import FORGET_WORKER_SECONDS, Sweeper


def test_a_sweep_repeats_a_ticket_for_every_model_that_waits_and_forgets_the_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten: list[tuple[object, float]] = []
    monkeypatch.setattr(sweeper, "forget_unseen", lambda *args: forgotten.append(args))
    actors: list[str] = []
    tickets: list[str] = []

    def sweep(actor: str) -> SweepReport:
        actors.append(actor)
        return SweepReport([("a", "m")], ["b"], ["c"])

    store: Any = SimpleNamespace(sweep=sweep, models_waiting=lambda: ["m", "n"], engine="db")
    Sweeper(store, tickets.append, "sweeper:w").sweep()
    assert (actors, tickets) == (["sweeper:w"], ["m", "n"])
    assert forgotten == [("db", FORGET_WORKER_SECONDS)]


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
