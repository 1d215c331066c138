"""The parts of a transition: the guarded UPDATE, its event, and rows read for it.

For ``core.jobs``, ``core.sweeping`` and ``core.admission`` alone; nothing else may write a status.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Update, insert, select, update

from core.db import now_ms
from core.errors import NotFound
from core.models import JOB_EVENTS, JOBS, Job, Run
from core.records import JobRecord, RunRecord
from core.search import search_text


def move(
    connection: Connection,
    guard: Update,
    was: JobRecord,
    to_status: str,
    actor: str,
    **values: Any,
) -> bool:
    """One transition: the guarded UPDATE, and its row in ``job_events`` when it took hold."""
    if connection.execute(guard.values(status=to_status, **values)).rowcount != 1:
        return False
    attempt = values.get("attempt", was.attempt)
    append_event(connection, was.id, attempt, was.status, to_status, actor)
    return True


def append_event(
    connection: Connection,
    job_id: str,
    attempt: int,
    from_status: str | None,
    to_status: str,
    actor: str,
) -> None:
    """One row of the account that is never rewritten."""
    connection.execute(
        insert(JOB_EVENTS).values(
            job_id=job_id,
            attempt=attempt,
            from_status=from_status,
            to_status=to_status,
            actor=actor[:80],
            at=now_ms(),
        )
    )


def end_queued(
    connection: Connection, was: JobRecord, status: str, reason: str, actor: str
) -> bool:
    """End a job that no worker holds: ``canceled``, or ``failed`` at its deadline."""
    values: dict[str, Any] = {"finish_reason": reason, "finished_at": now_ms()}
    if was.text:  # of an attempt that was given back
        values["search_text"] = search_text(was.prompt, was.text)
    if status == "failed":
        values["error_code"] = "deadline"
        values["error_message"] = "No worker could take the job before its deadline."
    guard = update(JOBS).where(Job.id == was.id, Job.status == "queued")
    return move(connection, guard, was, status, actor, **values)


def held(job: JobRecord) -> Update:
    """The fence: only the attempt that was claimed, and only while it runs."""
    return update(JOBS).where(Job.id == job.id, Job.status == "running", Job.attempt == job.attempt)


def locked_rows(connection: Connection, condition: Any) -> list[JobRecord]:
    """The rows that a condition picks, locked, passing over those that others hold."""
    query = select(Job.__table__).where(condition).with_for_update(skip_locked=True)
    return [JobRecord.from_row(row) for row in connection.execute(query)]


def job_record(connection: Connection, job_id: str, *, lock: bool = False) -> JobRecord:
    """A job as it stands.

    Raises:
        NotFound: there is no such job.
    """
    query = select(Job.__table__).where(Job.id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound("There is no job with that id; it may have been deleted.")
    return JobRecord.from_row(row)


def run_record(connection: Connection, run_id: str) -> RunRecord:
    """A run with its jobs."""
    run = connection.execute(select(Run.__table__).where(Run.id == run_id)).one()
    jobs = connection.execute(
        select(Job.__table__).where(Job.run_id == run_id).order_by(Job.number)
    )
    return RunRecord.from_rows(run, jobs)
