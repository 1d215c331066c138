"""The events of jobs that ended long ago are folded to the first and the last one."""

from __future__ import annotations

from sqlalchemy import func, insert, select, update

from tests.integration.core.conftest import Bench, outcome
from textmill.core.database.connections import reading, writing
from textmill.core.database.maintenance import FOLD_SECONDS, Upkeep
from textmill.core.database.tables import JobEvent
from textmill.core.jobs.folding import BATCH_EVENTS, KEPT_DAYS, fold

DAY_MS = 86_400_000


def age(bench: Bench, job_id: str, days: float) -> None:
    """Let a job's events be older."""
    older = JobEvent.at - int(days * DAY_MS)
    with writing(bench.engine) as connection:
        connection.execute(update(JobEvent).where(JobEvent.job_id == job_id).values(at=older))


def ended(bench: Bench) -> str:
    """A job that was lost once and succeeded the second time."""
    job = bench.submit()
    bench.claimed()
    bench.lose(job.id)
    again = bench.claimed()
    assert bench.store.finish(again, outcome())
    return job.id


def test_the_first_and_the_last_event_stay(bench: Bench) -> None:
    running = bench.submit().id
    bench.claimed()
    old, deleted, young = (ended(bench) for _ in range(3))
    bench.store.delete(deleted)
    full = bench.path(old)
    assert len(full) > 3
    for job_id in (old, deleted, running):
        age(bench, job_id, KEPT_DAYS + 1)
    before = bench.path(young), bench.path(running)
    Upkeep(bench.engine).step()
    assert bench.path(old) == [full[0], full[-1]]
    assert len(bench.path(deleted)) == 2
    assert (bench.path(young), bench.path(running)) == before


def test_all_old_events_are_considered_once(bench: Bench) -> None:
    with writing(bench.engine) as connection:
        for number in range(BATCH_EVENTS):
            for source, to in ((None, "queued"), ("queued", "running"), ("running", "succeeded")):
                row = {"job_id": f"j{number}", "attempt": 1, "from_status": source}
                connection.execute(insert(JobEvent).values(**row, to_status=to, actor="w", at=1))
    upkeep, last = Upkeep(bench.engine, clock=lambda: 0.0), 0
    assert FOLD_SECONDS > 0
    upkeep.step()
    with reading(bench.engine) as connection:
        assert connection.execute(select(func.count()).select_from(JobEvent)).scalar_one() == (
            2 * BATCH_EVENTS
        )
    while (reached := fold(bench.engine, last)) != last:
        last = reached
    with reading(bench.engine) as connection:
        assert last == connection.execute(select(func.max(JobEvent.number))).scalar_one()
