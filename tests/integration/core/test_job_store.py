"""JobStore on both databases: every transition, its guard, and its one row in ``job_events``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from sqlalchemy import func, select

from tests.integration.core.conftest import MODEL, Bench, outcome
from textmill.core.database.connections import now_ms, reading
from textmill.core.database.tables import Job, JobTrace, Run
from textmill.core.errors import Conflict, NotFound, QueueFull, RateLimited, ValidationFailed
from textmill.core.jobs.history import History
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import Limits, Origin, Progress

# ---- submitting -------------------------------------------------------------------------------


def test_a_submitted_job_is_queued_and_keeps_every_character(bench: Bench) -> None:
    prompt = "Größe 你好 😀 \u2028 \x01 '\"\\ ${x}"
    job = bench.submit(prompt=prompt, has_trace=True, num_prompt_tokens=3)
    assert bench.job(job.id) == job
    assert (job.status, job.attempt, job.prompt, job.has_trace) == ("queued", 0, prompt, True)
    assert (job.text, job.num_prompt_tokens, job.num_completion_tokens) == ("", 3, 0)
    assert (job.worker_id, job.lease_until, job.started_at, job.finished_at) == (None,) * 4
    assert bench.path(job.id) == [(None, "queued", 0, "web")]


def test_the_same_key_and_body_find_the_first_job_and_another_body_is_refused(
    bench: Bench,
) -> None:
    first = bench.store.submit(bench.new(), Origin("anna", "key", "hash"))
    assert bench.store.submit(bench.new(), Origin("anna", "key", "hash")) == first
    with pytest.raises(ValidationFailed) as caught:
        bench.store.submit(bench.new(), Origin("anna", "key", "other hash"))
    assert [error.field for error in caught.value.errors] == ["Idempotency-Key"]
    assert bench.store.submit(bench.new(), Origin("bert", "key", "hash")).id != first.id
    assert bench.statuses(first.id) == ["queued"]


def test_a_key_finds_a_job_that_has_ended_and_a_full_queue_does_not_hide_it(
    new_bench: Callable[..., Bench],
) -> None:
    bench = new_bench(Limits(max_queued=1))
    first = bench.store.submit(bench.new(), Origin("anna", "key", "hash"))
    assert bench.store.submit(bench.new(), Origin("anna", "key", "hash")) == first
    bench.store.finish(bench.claimed(), outcome())
    again = bench.store.submit(bench.new(), Origin("anna", "key", "hash"))
    assert (again.id, again.status) == (first.id, "succeeded")


def test_keys_of_runs_and_of_jobs_are_apart_and_a_run_is_found_again(bench: Bench) -> None:
    origin = Origin("anna", "key", "hash")
    run = bench.store.submit_run("p", [bench.new(), bench.new()], origin)
    assert bench.store.submit_run("p", [bench.new()], origin) == run
    job = bench.store.submit(bench.new(), origin)
    assert job.id not in {other.id for other in run.jobs}
    with pytest.raises(ValidationFailed):
        bench.store.submit_run("p", [bench.new()], Origin("anna", "key", "other"))


def test_the_queue_takes_no_more_than_its_cap_and_counts_what_waits_alone(
    new_bench: Callable[..., Bench],
) -> None:
    bench = new_bench(Limits(max_queued=2))
    bench.submit()
    bench.submit()
    with pytest.raises(QueueFull) as caught:
        bench.submit()
    assert caught.value.retry_after_seconds > 0
    bench.claimed()
    bench.submit()
    with pytest.raises(QueueFull):
        bench.submit()


def test_an_owner_at_the_limit_waits_and_others_do_not(new_bench: Callable[..., Bench]) -> None:
    bench = new_bench(Limits(max_queued_per_owner=1))
    bench.submit("anna")
    with pytest.raises(RateLimited):
        bench.submit("anna")
    bench.submit("bert")


def test_a_run_is_stored_whole_or_not_at_all(new_bench: Callable[..., Bench]) -> None:
    bench = new_bench(Limits(max_queued=3))
    run = bench.store.submit_run("p", [bench.new(variant_index=i) for i in (0, 1)], Origin("anna"))
    assert [job.variant_index for job in run.jobs] == [0, 1]
    assert {job.run_id for job in run.jobs} == {run.id}
    with pytest.raises(QueueFull):
        bench.store.submit_run("p", [bench.new(), bench.new()], Origin("anna"))
    with reading(bench.engine) as connection:
        assert connection.execute(select(func.count()).select_from(Run)).scalar_one() == 1
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 2


# ---- the order of the claims ------------------------------------------------------------------


def test_each_priority_has_a_fair_share_of_its_own(bench: Bench) -> None:
    jobs = {
        (owner, priority, turn): bench.submit(owner, priority=priority).id
        for turn in (1, 2)
        for priority in (-1, 0, 1)
        for owner in ("anna", "ben")
    }
    names = {job_id: name for name, job_id in jobs.items()}
    order = [names[bench.claimed().id] for _ in jobs]
    assert order == [
        (owner, priority, turn)
        for priority in (1, 0, -1)
        for turn in (1, 2)
        for owner in ("anna", "ben")
    ]


def test_owners_take_turns_whoever_has_more(new_bench: Callable[..., Bench]) -> None:
    bench = new_bench(Limits(max_queued=1000))
    bench.store.submit_run("p", [bench.new() for _ in range(500)], Origin("anna"))
    for _ in range(3):
        bench.claimed()
    bert = bench.submit("bert")
    chris = [bench.submit("chris") for _ in range(2)]
    owners = [bench.claimed().owner_id for _ in range(6)]
    # Both newcomers come within a turn of the queue's head, and Chris's second in the next.
    assert owners.index("bert") <= 2
    assert owners.index("chris") <= 2
    assert [len(list(group)) for name, group in groupby(owners) if name == "anna"] != [6]
    assert sorted(owners)[-3:] == ["bert", "chris", "chris"]
    assert bench.job(bert.id).status == bench.job(chris[1].id).status == "running"


def test_an_owner_is_not_repaid_for_the_time_it_asked_for_nothing(bench: Bench) -> None:
    for _ in range(10):
        bench.submit("anna")
    for _ in range(8):
        bench.claimed()
    for _ in range(6):
        bench.submit("bert")
    owners = [bench.claimed().owner_id for _ in range(4)]
    assert sorted(owners) == ["anna", "anna", "bert", "bert"]


def test_one_owners_jobs_come_in_their_order(bench: Bench) -> None:
    ids = [bench.submit().id for _ in range(5)]
    assert [bench.claimed().id for _ in range(5)] == ids


def test_a_priority_that_an_older_release_wrote_changes_no_turn(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    bench.set(second.id, priority=1)
    assert [bench.claimed().id, bench.claimed().id] == [first.id, second.id]


def test_a_worker_gets_jobs_of_its_models_alone(bench: Bench) -> None:
    job = bench.submit(model="other")
    assert bench.claim() is None
    assert not bench.store.has_eligible([MODEL])
    assert bench.store.has_eligible(["other", MODEL])
    claimed = bench.store.claim("w2", [MODEL, "other"])
    assert claimed is not None
    assert claimed.id == job.id
    assert bench.store.models_waiting() == []


def test_what_may_not_start_yet_or_no_more_is_not_claimed(bench: Bench) -> None:
    later, late = bench.submit(), bench.submit()
    bench.set(later.id, not_before=now_ms() + 60_000)
    bench.set(late.id, deadline_at=now_ms() - 1)
    assert bench.claim() is None
    assert not bench.store.has_eligible([MODEL])


# ---- a job's life -----------------------------------------------------------------------------


def test_a_claim_starts_a_new_attempt_under_a_lease(bench: Bench) -> None:
    bench.submit()
    job = bench.claimed("w1")
    assert (job.status, job.attempt, job.worker_id) == ("running", 1, "w1")
    assert job.started_at is not None
    assert job.lease_until is not None
    assert 29_000 < job.lease_until - job.started_at <= 30_001
    assert bench.path(job.id)[1:] == [("queued", "running", 1, "w1")]
    assert bench.claim("w2") is None


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_a_worker_ends_its_job(bench: Bench, status: str) -> None:
    bench.submit()
    job = bench.claimed()
    error = {"error_code": "bad", "error_message": "Went wrong."} if status == "failed" else {}
    values = outcome(status, "Ende 😀", first_token_seconds=0.25, model_revision="r1", **error)
    assert bench.store.finish(job, values)
    ended = bench.job(job.id)
    assert (ended.status, ended.text, ended.model_revision) == (status, "Ende 😀", "r1")
    assert (ended.num_prompt_tokens, ended.num_completion_tokens) == (2, 4)
    assert ended.error_code == error.get("error_code")
    assert ended.first_token_at == (ended.started_at or 0) + 250
    assert ended.lease_until is None
    assert ended.is_final
    assert bench.path(job.id)[2:] == [("running", status, 1, "w1")]


def test_a_second_end_is_refused(bench: Bench) -> None:
    bench.submit()
    job = bench.claimed()
    assert bench.store.finish(job, outcome(text="first"))
    assert not bench.store.finish(job, outcome("failed", text="second"))
    assert not bench.store.release(job)
    assert bench.job(job.id).text == "first"
    assert bench.statuses(job.id) == ["queued", "running", "succeeded"]


def test_a_trace_is_kept_with_the_end_and_replaced_by_a_repetition(bench: Bench) -> None:
    bench.submit(has_trace=True)
    job = bench.claimed()
    tokens = [{"id": 3, "text": "😀", "alternatives": [{"id": 1, "probability": 0.5}]}]
    assert bench.store.finish(job, outcome(trace=tokens))
    assert History(bench.engine).trace(job.id) == tokens
    bench.store.delete(job.id)
    with reading(bench.engine) as connection:
        assert connection.execute(select(JobTrace.job_id)).all() == []


def test_progress_shows_and_a_new_attempt_begins_again(bench: Bench) -> None:
    bench.submit()
    job = bench.claimed()
    bench.store.save_progress("w1", [Progress(job.id, 1, "there", 2, 3, 0.1)])
    shown = bench.job(job.id)
    assert (shown.text, shown.num_completion_tokens, shown.num_prompt_tokens) == ("there", 2, 3)
    assert shown.first_token_at == (shown.started_at or 0) + 100
    bench.lose(job.id)
    again = bench.claimed("w2")
    assert (again.text, again.num_completion_tokens, again.first_token_at) == ("", 0, None)


def test_a_released_job_waits_again_without_a_loss(bench: Bench) -> None:
    bench.submit()
    job = bench.claimed()
    assert bench.store.release(job)
    waiting = bench.job(job.id)
    assert (waiting.status, waiting.attempt, waiting.lost_count) == ("queued", 1, 0)
    assert (waiting.worker_id, waiting.lease_until) == (None, None)
    assert bench.claimed("w2").attempt == 2
    assert bench.statuses(job.id) == ["queued", "running", "queued", "running"]


def test_a_release_after_an_error_waits_and_counts(bench: Bench) -> None:
    bench.submit()
    assert bench.store.release(bench.claimed(), delay_seconds=60, counts_as_loss=True)
    assert bench.claim() is None
    with reading(bench.engine) as connection:
        row = connection.execute(select(Job.lost_count, Job.not_before - now_ms())).one()
    assert row[0] == 1
    assert 55_000 < row[1] <= 60_000


# ---- the fence --------------------------------------------------------------------------------


def test_a_zombie_can_write_nothing(bench: Bench) -> None:
    bench.submit()
    zombie = bench.claimed("w1")
    bench.lose(zombie.id)
    living = bench.claimed("w2")
    before = bench.job(zombie.id)
    assert not bench.store.finish(zombie, outcome(text="zombie", trace=[{"id": 1}]))
    assert not bench.store.release(zombie)
    bench.store.save_progress("w1", [Progress(zombie.id, 1, "zombie", 9)])
    bench.store.save_progress("w1", [Progress(zombie.id, 2, "zombie", 9)])
    lease_status = bench.store.renew("w1", {zombie.id: 1})
    assert lease_status.lost == {zombie.id}
    assert not lease_status.to_cancel
    assert bench.job(zombie.id) == before
    assert bench.store.finish(living, outcome(text="living"))
    assert bench.job(zombie.id).text == "living"
    assert bench.statuses(zombie.id) == ["queued", "running", "queued", "running", "succeeded"]


def test_the_same_worker_under_an_older_attempt_is_a_zombie_too(bench: Bench) -> None:
    bench.submit()
    old = bench.claimed("w1")
    bench.lose(old.id)
    new = bench.claimed("w1")
    assert bench.store.lease_status("w1", {old.id: old.attempt}).lost == {old.id}
    assert bench.store.lease_status("w1", {new.id: new.attempt}).lost == set()
    assert not bench.store.finish(old, outcome())
    assert bench.store.finish(new, outcome())


def test_a_heartbeat_renews_and_tells_what_changed(bench: Bench) -> None:
    for _ in range(4):
        bench.submit()
    kept, canceled, lost, deleted = (bench.claimed(most_losses=0) for _ in range(4))
    for job in (kept, canceled):
        bench.set(job.id, lease_until=now_ms() + 1000)
    bench.lose(lost.id)
    bench.store.request_cancel(canceled.id)
    bench.store.delete(deleted.id)
    attempts = {job.id: 1 for job in (kept, canceled, lost, deleted)}
    lease_status = bench.store.renew("w1", attempts)
    assert lease_status.to_cancel == {canceled.id}
    assert lease_status.lost == {lost.id, deleted.id}
    with reading(bench.engine) as connection:
        query = select(Job.lease_until - now_ms()).where(Job.id.in_([kept.id, canceled.id]))
        assert all((left or 0) > 25_000 for left in connection.execute(query).scalars())
    assert bench.store.lease_status("w1", attempts) == lease_status
    assert bench.store.renew("w1", {}) == bench.store.lease_status("w1", {})


# ---- cancel and delete ------------------------------------------------------------------------


def test_canceling_what_waits_ends_it_at_once(bench: Bench) -> None:
    job = bench.submit()
    canceled = bench.store.request_cancel(job.id)
    assert (canceled.status, canceled.finish_reason) == ("canceled", "canceled")
    assert canceled.finished_at is not None
    assert bench.claim() is None
    assert bench.path(job.id)[1:] == [("queued", "canceled", 0, "client")]


def test_canceling_what_runs_asks_its_worker_and_keeps_asking_once(bench: Bench) -> None:
    bench.submit()
    job = bench.claimed()
    asked = bench.store.request_cancel(job.id)
    assert asked.status == "running"
    assert asked.cancel_requested_at is not None
    assert bench.store.request_cancel(job.id).cancel_requested_at == asked.cancel_requested_at
    assert bench.store.finish(job, outcome("canceled", text="so far"))
    assert bench.statuses(job.id) == ["queued", "running", "canceled"]
    assert bench.job(job.id).text == "so far"


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_what_was_asked_to_cancel_ends_as_canceled_however_its_text_ended(
    bench: Bench, status: str
) -> None:
    bench.submit(has_trace=True)
    job = bench.claimed()
    bench.store.request_cancel(job.id)
    made = outcome(status, text="all of it", error_code="x", error_message="y", trace=[{"id": 1}])
    written = bench.store.finish(job, made)
    assert written is not None
    assert (written.status, written.text) == ("canceled", "all of it")
    ended = bench.job(job.id)
    assert (ended.status, ended.finish_reason, ended.text) == ("canceled", "canceled", "all of it")
    assert (ended.error_code, ended.error_message) == (None, None)
    assert bench.statuses(job.id) == ["queued", "running", "canceled"]
    assert bench.found("all") == {job.id}
    assert History(bench.engine).trace(job.id) == [{"id": 1}]


def test_a_waiting_job_that_an_older_release_left_asked_to_cancel_is_swept(bench: Bench) -> None:
    job = bench.submit()
    bench.set(job.id, cancel_requested_at=1)
    assert bench.claim() is None
    assert bench.store.sweep("sweeper").canceled == [job.id]
    assert bench.statuses(job.id) == ["queued", "canceled"]


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_what_has_ended_can_be_canceled_no_more(bench: Bench, status: str) -> None:
    bench.submit()
    job = bench.claimed()
    bench.store.finish(job, outcome(status))
    before = bench.job(job.id)
    with pytest.raises(Conflict, match=status):
        bench.store.request_cancel(job.id)
    assert bench.job(job.id) == before


def test_a_canceled_job_that_is_released_or_lost_ends_as_canceled(bench: Bench) -> None:
    bench.submit()
    bench.submit()
    released, lost = bench.claimed(), bench.claimed(most_losses=0)
    for job in (released, lost):
        bench.store.save_progress("w1", [Progress(job.id, 1, "wonderful", 2)])
        bench.store.request_cancel(job.id)
    assert bench.store.release(released)
    bench.expire_lease(lost.id)
    assert bench.store.sweep("sweeper").canceled == [lost.id]
    for job in (released, lost):
        ended = bench.job(job.id)
        assert (ended.status, ended.finish_reason) == ("canceled", "canceled")
        assert (ended.text, ended.lease_until) == ("wonderful", None)
        assert bench.statuses(job.id) == ["queued", "running", "canceled"]
    assert bench.found("wonderful") == {released.id, lost.id}


def test_text_that_a_released_job_kept_is_found_when_it_is_canceled(bench: Bench) -> None:
    bench.submit()
    job = bench.claimed()
    bench.store.save_progress("w1", [Progress(job.id, 1, "wonderful", 2)])
    bench.store.release(job)
    bench.store.request_cancel(job.id)
    assert bench.job(job.id).text == "wonderful"
    assert bench.found("wonderful") == {job.id}


def test_deleting_in_every_state_leaves_the_account_of_what_happened(bench: Bench) -> None:
    queued = bench.submit()
    assert bench.store.delete(queued.id).status == "queued"
    running = bench.submit()
    claimed = bench.claimed()
    assert bench.store.delete(running.id).status == "running"
    ended = bench.submit()
    bench.store.finish(bench.claimed(), outcome())
    assert bench.store.delete(ended.id).status == "succeeded"
    assert bench.statuses(queued.id) == ["queued", "canceled"]
    assert bench.statuses(running.id) == ["queued", "running", "canceled"]
    assert bench.statuses(ended.id) == ["queued", "running", "succeeded"]
    for job in (queued, running, ended):
        with pytest.raises(NotFound):
            bench.store.delete(job.id)
        with pytest.raises(NotFound):
            bench.store.request_cancel(job.id)
    assert not bench.store.finish(claimed, outcome())
    assert not bench.store.release(claimed)
    assert bench.store.lease_status("w1", {claimed.id: 1}).lost == {claimed.id}


def test_the_last_job_of_a_run_takes_the_run_with_it(bench: Bench) -> None:
    run = bench.store.submit_run("p", [bench.new(), bench.new()], Origin("anna"))
    history = History(bench.engine)
    bench.store.delete(run.jobs[0].id)
    assert [job.id for job in history.run(run.id).jobs] == [run.jobs[1].id]
    bench.store.delete(run.jobs[1].id)
    with pytest.raises(NotFound):
        history.run(run.id)


def test_a_deleted_jobs_key_and_number_are_free_and_not_free(bench: Bench) -> None:
    origin = Origin("anna", "key", "hash")
    first = bench.store.submit(bench.new(), origin)
    bench.store.delete(first.id)
    second = bench.store.submit(bench.new(), origin)
    assert second.id != first.id
    assert second.number > first.number


def test_a_record_tells_the_place_in_the_stream(bench: Bench) -> None:
    bench.submit()
    job: JobRecord = bench.claimed()
    assert job.cursor == "1-0"
    bench.store.finish(job, outcome(text="ab😀"))
    assert bench.job(job.id).cursor == "1-3"
