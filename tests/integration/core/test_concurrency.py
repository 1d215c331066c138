"""Many threads on one store: the promises that only real contention can break."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, func, select

from tests.integration.core.conftest import MODEL, Bench, outcome
from textmill.core.database.connections import make_engine, reading
from textmill.core.database.tables import Job
from textmill.core.errors import ClientError, Conflict, QueueFull
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, Limits, Origin, Progress

NUM_THREADS = 16


def together(num: int, call: Callable[[int], object]) -> list[object]:
    """Call from many threads that all start at the same moment; errors come out."""
    gate = threading.Barrier(num)

    def run(number: int) -> object:
        gate.wait(10)
        return call(number)

    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(run, range(num)))


def test_every_job_is_claimed_by_exactly_one_of_many_workers(bench: Bench) -> None:
    jobs = {bench.submit(f"owner-{n % 5}").id for n in range(80)}
    claimed: list[str] = []

    def work(number: int) -> None:
        while (job := bench.claim(f"w{number}")) is not None:
            claimed.append(job.id)

    together(8, work)
    # SKIP LOCKED may show a thread an empty queue while another one holds the last row.
    work(8)
    assert Counter(claimed) == dict.fromkeys(jobs, 1)
    assert all(bench.job(job_id).attempt == 1 for job_id in jobs)


def test_one_key_makes_one_job_however_many_ask_at_once(bench: Bench) -> None:
    origin = Origin("anna", "key", "hash")
    found = together(NUM_THREADS, lambda _: bench.store.submit(bench.new(), origin).id)
    assert len(set(found)) == 1
    runs = together(
        NUM_THREADS, lambda _: bench.store.submit_run("p", [bench.new()] * 2, origin).id
    )
    assert len(set(runs)) == 1
    with reading(bench.engine) as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 3


def test_submissions_at_the_cap_never_pass_it(database: Engine) -> None:
    store = JobStore(database, Limits(max_queued=20))
    bench = Bench(store)

    def submit(number: int) -> int:
        accepted = 0
        for _ in range(4):
            try:
                bench.submit(f"owner-{number}")
                accepted += 1
            except QueueFull:
                pass
        return accepted

    assert sum(together(NUM_THREADS, submit)) == 20  # type: ignore[arg-type]
    with reading(database) as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 20


def test_of_many_that_end_a_job_at_once_one_succeeds(bench: Bench) -> None:
    """The worker, the sweeper, a client that cancels and one that deletes, all at the same time."""
    for round_ in range(6):
        bench.submit()
        job = bench.claimed()
        bench.expire_lease(job.id)
        calls: list[Callable[[], object]] = [
            lambda job=job: bench.store.finish(job, outcome()),  # type: ignore[misc]
            lambda job=job: bench.store.release(job),  # type: ignore[misc]
            lambda: bench.store.sweep("s"),
            lambda job=job: _quietly(lambda: bench.store.request_cancel(job.id)),  # type: ignore[misc]
            lambda job=job: _quietly(lambda: bench.store.finish(job, outcome("failed"))),  # type: ignore[misc]
        ]
        if round_ % 2:
            calls.append(lambda job=job: _quietly(lambda: bench.store.delete(job.id)))  # type: ignore[misc]
        together(len(calls), lambda number, calls=calls: calls[number]())  # type: ignore[misc]
        path = bench.path(job.id)
        assert [step[1] for step in path[:-1]] == [step[0] for step in path[1:]]
        assert sum(step[1] in {"succeeded", "failed", "canceled"} for step in path) <= 1
        left = [step for step in path if step[0] == "running"]
        assert len(left) == 1  # exactly one of them ended the attempt
        _quietly(lambda job=job: bench.store.delete(job.id))  # type: ignore[misc]


@pytest.mark.parametrize(
    "end",
    [
        lambda bench, job: bench.store.finish(job, outcome(text="all of it")),
        lambda bench, job: bench.store.finish(job, outcome("failed", error_code="engine_error")),
        lambda bench, job: bench.store.finish(job, outcome("canceled")),
        lambda bench, job: bench.store.release(job),
        lambda bench, job: bench.store.release(job, counts_as_loss=True),
        lambda bench, job: (bench.expire_lease(job.id), bench.store.sweep("s")),
    ],
    ids=["succeeds", "fails", "is-canceled", "is-drained", "is-retried", "is-swept"],
)
def test_a_cancellation_that_was_accepted_is_kept_whatever_happens_at_that_moment(
    bench: Bench, end: Callable[[Bench, JobRecord], object]
) -> None:
    """A client cancels while the attempt ends; then the job is run to its end."""
    for _ in range(12):
        bench.submit()
        job = bench.claimed()
        answers: list[bool] = []

        def cancel(job: JobRecord = job, answers: list[bool] = answers) -> None:
            with contextlib.suppress(Conflict):
                bench.store.request_cancel(job.id)
                answers.append(True)

        calls = [cancel, lambda job=job: end(bench, job)]
        together(2, lambda number, calls=calls: calls[number]())  # type: ignore[misc]
        if bench.job(job.id).status == "running":  # the sweep passed over a row that was locked
            bench.lose(job.id)
        bench.set(job.id, not_before=0)
        while (again := bench.claim()) is not None:
            bench.store.finish(again, outcome())
        ended = bench.job(job.id)
        assert ended.is_final
        if answers:
            assert (ended.status, ended.finish_reason) == ("canceled", "canceled")
            assert (ended.error_code, ended.error_message) == (None, None)
        assert bench.statuses(job.id)[-1] == ended.status
        assert (
            sum(status in {"succeeded", "failed", "canceled"} for status in bench.statuses(job.id))
            == 1
        )


def _quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(ClientError):  # it has already ended, or is gone
        call()


def test_no_writer_is_ever_told_that_the_database_is_busy(database_url: str) -> None:
    """Sixteen writers with an engine each, as separate processes have; WAL takes one at a time."""
    engines = [make_engine(database_url, pool_size=1) for _ in range(NUM_THREADS)]
    try:
        benches = [Bench(JobStore(engine)) for engine in engines]

        def live(number: int) -> int:
            bench, worker = benches[number], f"w{number}"
            num_done = 0
            for _ in range(6):
                bench.submit(f"owner-{number}")
                job = bench.store.claim(worker, [MODEL])
                if job is None:
                    continue
                bench.store.save_progress(worker, [Progress(job.id, job.attempt, "t", 1)])
                bench.store.renew(worker, {job.id: job.attempt})
                bench.store.sweep(worker)
                num_done += bench.store.finish(job, outcome()) is not None
            return num_done

        num_done = sum(together(NUM_THREADS, live))  # type: ignore[arg-type]
        with reading(engines[0]) as connection:
            by_status = dict(
                connection.execute(select(Job.status, func.count()).group_by(Job.status)).all()
            )
        assert by_status.get("succeeded") == num_done
        assert sum(by_status.values()) == 6 * NUM_THREADS
        assert set(by_status) <= {"succeeded", "queued"}
    finally:
        for engine in engines:
            engine.dispose()
