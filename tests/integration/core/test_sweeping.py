"""The sweep on both databases: leases that ran out, deadlines, and whose jobs wait."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select

from tests.integration.core.conftest import MODEL, Bench
from textmill.core.database.connections import now_ms, reading
from textmill.core.database.tables import Job
from textmill.core.jobs.store import JobStore, Progress
from textmill.core.jobs.sweeping import MAX_LOSSES
from textmill.core.workers import WorkerState, beat


def test_a_sweep_takes_back_what_the_dead_held_and_leaves_the_living(bench: Bench) -> None:
    bench.submit()
    bench.submit()
    dead, living = bench.claimed("w1"), bench.claimed("w2")
    bench.expire_lease(dead.id)
    report = bench.store.sweep("sweeper:w2")
    assert (report.requeued, report.failed, report.canceled) == ([(dead.id, MODEL)], [], [])
    job = bench.job(dead.id)
    assert (job.status, job.lost_count, job.worker_id) == ("queued", 1, None)
    assert bench.job(living.id) == living
    assert bench.path(dead.id)[2:] == [("running", "queued", 1, "sweeper:w2")]
    assert bench.store.sweep("sweeper").requeued == []


def test_a_job_that_was_lost_more_often_than_is_admitted_is_passed_or_waited_for(
    bench: Bench,
) -> None:
    bench.submit()
    lost = bench.claimed()
    bench.lose(lost.id)
    behind = bench.submit()
    assert bench.claim(most_losses=0, waits_for_first=True) is None
    assert bench.claimed("w3", most_losses=0).id == behind.id
    assert bench.claim("w3", most_losses=0) is None
    assert bench.claimed("w2", most_losses=1, waits_for_first=True).id == lost.id


def test_a_lease_that_was_renewed_since_it_was_seen_is_left(bench: Bench) -> None:
    bench.submit()
    bench.submit()
    dead, living = bench.claimed("w1"), bench.claimed("w2")
    for job in (dead, living):
        bench.expire_lease(job.id)
    seen = bench.store.held_leases()
    assert {lease.job_id for lease in seen} == {dead.id, living.id}
    assert all(lease.is_expired and lease.is_orphan for lease in seen)
    bench.store.renew("w2", {living.id: living.attempt})
    assert bench.store.sweep("s", []).requeued == []
    assert bench.store.sweep("s", seen).requeued == [(dead.id, MODEL)]
    assert bench.job(living.id).status == "running"


def test_the_lease_of_a_worker_that_is_known_is_no_orphan(bench: Bench) -> None:
    beat(bench.engine, WorkerState("w1", [MODEL], 4, 0, 0.0))
    bench.submit()
    bench.submit()
    known, unknown = bench.claimed("w1"), bench.claimed("w2")
    leases = {lease.job_id: lease for lease in bench.store.held_leases()}
    assert not leases[known.id].is_orphan
    assert leases[unknown.id].is_orphan
    assert not any(lease.is_expired for lease in leases.values())


def test_the_third_loss_fails_the_job_and_the_second_makes_it_wait(bench: Bench) -> None:
    bench.submit()
    for loss in range(1, MAX_LOSSES):
        job = bench.claimed()
        bench.expire_lease(job.id)
        bench.store.sweep("sweeper")
        with reading(bench.engine) as connection:
            left = connection.execute(select(Job.not_before - now_ms())).scalar_one()
        assert (loss - 1.9) * 1000 < left <= (loss - 1) * 1000
        bench.set(job.id, not_before=0)
    job = bench.claimed()
    bench.store.save_progress("w1", [Progress(job.id, 3, "wonderful", 2)])
    bench.expire_lease(job.id)
    assert bench.store.sweep("sweeper").failed == [job.id]
    failed = bench.job(job.id)
    assert (failed.status, failed.finish_reason) == ("failed", "error")
    assert (failed.error_code, failed.lost_count) == ("worker_lost", 3)
    assert failed.text == "wonderful"
    assert bench.found("wonderful") == {job.id}
    expected = ["queued", "running"] * 3 + ["failed"]
    assert bench.statuses(job.id) == expected


def test_what_waited_beyond_its_deadline_fails_and_says_so(bench: Bench) -> None:
    job = bench.submit()
    bench.set(job.id, deadline_at=now_ms() - 1)
    assert bench.store.sweep("sweeper").failed == [job.id]
    failed = bench.job(job.id)
    assert (failed.status, failed.finish_reason) == ("failed", "deadline")
    assert failed.error_code == "deadline"
    assert bench.path(job.id)[1:] == [("queued", "failed", 0, "sweeper")]


def test_a_job_that_runs_is_not_the_deadline_sweeps_business(bench: Bench) -> None:
    bench.submit()
    job = bench.claimed()
    bench.set(job.id, deadline_at=now_ms() - 1)
    report = bench.store.sweep("sweeper")
    assert (report.requeued, report.failed) == ([], [])


def test_models_that_wait_are_told_once(bench: Bench) -> None:
    bench.submit()
    bench.submit()
    other = bench.submit(model="other")
    assert sorted(bench.store.models_waiting()) == [MODEL, "other"]
    bench.set(other.id, not_before=now_ms() + 60_000)
    assert bench.store.models_waiting() == [MODEL]


def test_two_stores_with_short_leases_hand_a_job_on(new_bench: Callable[..., Bench]) -> None:
    bench = new_bench(lease_seconds=-1)
    bench.submit()
    job = bench.claimed()
    assert JobStore(bench.engine).sweep("other").requeued == [(job.id, MODEL)]
