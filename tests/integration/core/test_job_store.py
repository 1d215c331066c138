"""The states of a job on both databases: every transition, and everything that must not be one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update

from core.db import now_ms, reading, writing
from core.errors import Conflict, NotFound, QueueFull, RateLimited, ValidationFailed
from core.jobs import JobStore, Limits, NewJob, Origin, Outcome, Progress
from core.models import Job, JobEvent, JobTrace, Run
from core.records import JobRecord

ME, YOU = Origin("me"), Origin("you")


def new(prompt: str = "p", **values: Any) -> NewJob:
    return NewJob("m", prompt, "greedy", {"max_new_tokens": 4, "seed": 1, "stop": []}, **values)


def outcome(status: str = "succeeded", text: str = "done", **values: Any) -> Outcome:
    reason = {"succeeded": "length", "failed": "error", "canceled": "canceled"}[status]
    return Outcome(status, text, reason, 1, 4, **values)


def claim(store: JobStore, worker: str = "w1", *, is_idle: bool = True) -> JobRecord:
    job = store.claim(worker, ["m"], is_idle=is_idle)
    assert job is not None
    return job


def expire(store: JobStore, job: JobRecord) -> None:
    """Let the lease run out without waiting for it."""
    with writing(store.engine) as connection:
        connection.execute(
            update(Job).where(Job.id == job.id).values(lease_until=now_ms() - 1, not_before=0)
        )


def hurry(store: JobStore) -> None:
    """Let the time before a retry pass."""
    with writing(store.engine) as connection:
        connection.execute(update(Job).values(not_before=0))


def look(store: JobStore, job: JobRecord) -> JobRecord:
    with reading(store.engine) as connection:
        row = connection.execute(select(Job.__table__).where(Job.id == job.id)).one()
        return JobRecord.from_row(row)


def path_of(store: JobStore, job: JobRecord) -> list[str]:
    with reading(store.engine) as connection:
        query = select(JobEvent.to_status).where(JobEvent.job_id == job.id)
        return list(connection.execute(query.order_by(JobEvent.number)).scalars())


@pytest.fixture
def store(database: Engine) -> JobStore:
    return JobStore(database)


def test_a_job_goes_from_queued_to_succeeded_with_one_event_a_step(store: JobStore) -> None:
    job = store.submit(new(), ME)
    held = claim(store)
    assert held.id == job.id
    assert held.attempt == 1
    assert held.lease_until is not None
    assert held.started_at is not None
    assert held.lease_until - held.started_at == 30_000
    assert store.finish(held, outcome(first_token_seconds=0.25))
    done = look(store, job)
    assert done.status == "succeeded"
    assert done.text == "done"
    assert done.first_token_at == held.started_at + 250
    assert path_of(store, job) == ["queued", "running", "succeeded"]


def test_a_final_state_never_changes_again(store: JobStore) -> None:
    store.submit(new(), ME)
    held = claim(store)
    store.finish(held, outcome())
    assert not store.finish(held, outcome("failed"))
    assert not store.release(held)
    store.save_progress("w1", [Progress(held.id, 1, "other", 9)])
    with pytest.raises(Conflict):
        store.request_cancel(held.id)
    expire(store, held)
    assert not store.sweep("s").requeued
    assert look(store, held).text == "done"
    assert path_of(store, held) == ["queued", "running", "succeeded"]


def test_a_zombie_can_write_nothing_once_its_job_is_taken_over(store: JobStore) -> None:
    store.submit(new(), ME)
    zombie = claim(store, "w1")
    expire(store, zombie)
    assert [job_id for job_id, _ in store.sweep("s").requeued] == [zombie.id]
    hurry(store)
    heir = claim(store, "w2")
    assert heir.attempt == 2
    assert not store.finish(zombie, outcome(text="zombie"))
    assert not store.release(zombie)
    store.save_progress("w1", [Progress(zombie.id, 1, "zombie", 1)])
    assert store.renew("w1", {zombie.id: 1}).lost == {zombie.id}
    assert look(store, heir).text == ""
    assert store.finish(heir, outcome(text="heir"))
    assert look(store, heir).text == "heir"


def test_a_new_attempt_starts_with_an_empty_text(store: JobStore) -> None:
    store.submit(new(), ME)
    first = claim(store)
    store.save_progress("w1", [Progress(first.id, 1, "half", 2)])
    assert look(store, first).text == "half"
    store.release(first)
    assert look(store, first).status == "queued"
    assert look(store, first).lost_count == 0
    second = claim(store)
    assert (second.attempt, second.text, second.num_completion_tokens) == (2, "", 0)


def test_a_lost_job_runs_alone_and_fails_at_its_third_loss(store: JobStore) -> None:
    guilty = store.submit(new(), ME)
    for losses in (1, 2):
        held = claim(store)
        expire(store, held)
        store.sweep("s")
        assert look(store, guilty).lost_count == losses
        hurry(store)
        assert store.claim("w1", ["m"], is_idle=False) is None
    held = claim(store)
    expire(store, held)
    assert store.sweep("s").failed == [guilty.id]
    failed = look(store, guilty)
    assert failed.status == "failed"
    assert failed.error_code == "worker_lost"


def test_an_error_that_counts_as_a_loss_makes_the_job_run_alone(store: JobStore) -> None:
    store.submit(new(), ME)
    held = claim(store)
    assert store.release(held, counts_as_loss=True)
    assert look(store, held).lost_count == 1
    assert store.claim("w1", ["m"], is_idle=False) is None


def test_cancel_ends_a_queued_job_at_once_and_asks_for_a_running_one(store: JobStore) -> None:
    queued = store.submit(new(), ME)
    assert store.request_cancel(queued.id).status == "canceled"
    store.submit(new(), ME)
    held = claim(store)
    assert store.request_cancel(held.id).status == "running"
    assert store.request_cancel(held.id).cancel_requested_at is not None
    assert store.renew("w1", {held.id: 1}).to_cancel == {held.id}
    assert store.finish(held, outcome("canceled", "so far"))
    assert look(store, held).text == "so far"


def test_a_canceled_job_is_not_released_into_the_queue(store: JobStore) -> None:
    store.submit(new(), ME)
    held = claim(store)
    store.request_cancel(held.id)
    assert store.release(held)
    assert look(store, held).status == "canceled"


def test_a_canceled_job_whose_worker_died_ends_canceled_and_keeps_its_text(
    store: JobStore,
) -> None:
    store.submit(new(), ME)
    held = claim(store)
    store.save_progress("w1", [Progress(held.id, 1, "so far", 2)])
    store.request_cancel(held.id)
    expire(store, held)
    assert store.sweep("s").canceled == [held.id]
    assert look(store, held).text == "so far"


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_a_deleted_job_leaves_its_account_alone(store: JobStore, state: str) -> None:
    job = store.submit(new(has_trace=True), ME)
    if state != "queued":
        held = claim(store)
        if state == "succeeded":
            store.finish(held, outcome(trace=[{"id": 1}]))
    store.delete(job.id)
    with pytest.raises(NotFound):
        store.delete(job.id)
    with reading(store.engine) as connection:
        assert connection.execute(select(func.count()).select_from(JobTrace)).scalar_one() == 0
    ended = path_of(store, job)
    assert ended[-1] == ("succeeded" if state == "succeeded" else "canceled")
    if state == "running":
        assert store.renew("w1", {job.id: 1}).lost == {job.id}
        assert not store.finish(held, outcome())


def test_the_last_job_of_a_run_takes_the_run_with_it(store: JobStore) -> None:
    run = store.submit_run("p", [new(), new()], ME)
    store.delete(run.jobs[0].id)
    with reading(store.engine) as connection:
        assert connection.execute(select(Run.id)).scalars().all() == [run.id]
    store.delete(run.jobs[1].id)
    with reading(store.engine) as connection:
        assert connection.execute(select(Run.id)).scalars().all() == []


def test_the_same_key_finds_the_same_job_and_another_body_is_refused(store: JobStore) -> None:
    job = store.submit(new(), Origin("me", "k", "h1"))
    assert store.submit(new(), Origin("me", "k", "h1")).id == job.id
    assert store.submit(new(), Origin("you", "k", "h2")).id != job.id
    with pytest.raises(ValidationFailed):
        store.submit(new(), Origin("me", "k", "h2"))


def test_a_run_that_the_queue_cannot_hold_is_not_stored_at_all(database: Engine) -> None:
    store = JobStore(database, Limits(max_queued=2))
    with pytest.raises(QueueFull):
        store.submit_run("p", [new(), new(), new()], ME)
    with reading(database) as connection:
        assert connection.execute(select(func.count()).select_from(Run)).scalar_one() == 0
    store.submit_run("p", [new(), new()], ME)
    with pytest.raises(QueueFull):
        store.submit(new(), ME)


def test_an_owner_may_be_held_to_a_limit_of_its_own(database: Engine) -> None:
    store = JobStore(database, Limits(max_queued_per_owner=1))
    store.submit(new(), ME)
    with pytest.raises(RateLimited):
        store.submit(new(), ME)
    store.submit(new(), YOU)


def test_owners_take_turns_however_many_jobs_one_has(store: JobStore) -> None:
    for number in range(5):
        store.submit(new(f"a{number}"), ME)
    assert claim(store).prompt == "a0"
    store.submit(new("b0"), YOU)
    store.submit(new("b1"), YOU)
    order = [claim(store).prompt for _ in range(6)]
    assert order == ["a1", "b0", "a2", "b1", "a3", "a4"]


def test_a_higher_priority_goes_first(store: JobStore) -> None:
    store.submit(new("later"), ME)
    store.submit(new("sooner", priority=1), ME)
    assert claim(store).prompt == "sooner"


def test_a_worker_claims_only_its_models(store: JobStore) -> None:
    store.submit(new(), ME)
    assert store.claim("w", ["other"], is_idle=True) is None
    assert store.has_eligible(["m"])
    assert not store.has_eligible(["other"])


def test_a_job_that_waits_beyond_its_deadline_fails(database: Engine) -> None:
    store = JobStore(database, Limits(deadline_seconds=-1))
    job = store.submit(new(), ME)
    assert store.claim("w", ["m"], is_idle=True) is None
    assert store.sweep("s").failed == [job.id]
    assert look(store, job).error_code == "deadline"


def test_renewing_moves_the_lease_and_only_of_what_is_named(store: JobStore) -> None:
    store.submit(new(), ME)
    store.submit(new(), ME)
    first, second = claim(store), claim(store)
    expire(store, first)
    expire(store, second)
    standing = store.renew("w1", {first.id: 1})
    assert not standing.lost
    assert [job_id for job_id, _ in store.sweep("s").requeued] == [second.id]


def test_many_threads_claim_every_job_exactly_once(store: JobStore) -> None:
    for number in range(60):
        store.submit(new(), Origin(f"owner{number % 3}"))
    seen: list[str] = []
    lock = threading.Lock()

    def work(worker: int) -> None:
        while (job := store.claim(f"w{worker}", ["m"], is_idle=True)) is not None:
            with lock:
                seen.append(job.id)
            assert store.finish(job, outcome())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    # SKIP LOCKED may show a thread an empty queue while another holds the last row.
    while (job := store.claim("last", ["m"], is_idle=True)) is not None:
        seen.append(job.id)
    assert len(seen) == len(set(seen)) == 60


def test_concurrent_submits_share_a_key_and_never_pass_the_cap(database: Engine) -> None:
    store = JobStore(database, Limits(max_queued=10))
    origin = Origin("me", "k", "h")
    with ThreadPoolExecutor(8) as pool:
        same = {job.id for job in pool.map(lambda _: store.submit(new(), origin), range(16))}
    assert len(same) == 1

    def try_submit(number: int) -> bool:
        try:
            store.submit(new(), Origin(f"owner{number}"))
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = sum(pool.map(try_submit, range(40)))
    assert accepted == 9
