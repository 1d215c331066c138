"""The parts of a transition: the guarded UPDATE, its event, and rows read for it.

Only the modules of ``core.jobs`` that run in ``JobStore``'s transactions may use it: nothing else
writes a status.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ClauseElement, Connection, Update, bindparam, insert, select, update

from textmill.core.access.principals import EVERYTHING, Sight
from textmill.core.database.connections import now_ms
from textmill.core.database.tables import JOB_EVENTS, JOBS, Job, Run
from textmill.core.errors import NotFound
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.jobs.search import RULES, search_columns

# Built once: building a statement costs as much as executing it.
_APPEND_EVENT = insert(JOB_EVENTS).values(at=now_ms())
_OF = (Job.id == bindparam("of_job"), Job.attempt == bindparam("of_attempt"))
QUEUED = update(JOBS).where(*_OF, Job.status == "queued")
"""Guard of a queued job: the attempt must be the one that was read."""
RUNNING = update(JOBS).where(*_OF, Job.status == "running")
"""The fence: the attempt must be the one that was claimed, and the job must be running."""


def move(
    connection: Connection,
    guard: Update,
    was: JobRecord,
    to_status: str,
    actor: str,
    **values: Any,
) -> bool:
    """Make one transition: the guarded UPDATE and, if it matched, its row in ``job_events``.

    Args:
        connection: in a transaction that writes.
        guard: ``QUEUED`` or ``RUNNING``, with further conditions or values.
        was: the job as it was read.
        to_status: its new status.
        actor: the name that ``job_events`` records.
        **values: further columns to set, as values or SQL expressions, and the parameters of the
            guard's own expressions.

    Returns:
        Whether the UPDATE matched the job.
    """
    computed = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
    if computed:
        guard = guard.values(**computed)
    plain = {name: value for name, value in values.items() if name not in computed}
    of = {"of_job": was.id, "of_attempt": was.attempt}
    if connection.execute(guard, of | plain | {"status": to_status}).rowcount != 1:
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
    """Insert one row into ``job_events``, which is never rewritten."""
    event = {
        "job_id": job_id,
        "attempt": attempt,
        "from_status": from_status,
        "to_status": to_status,
        "actor": actor[:80],
    }
    connection.execute(_APPEND_EVENT, event)


def end_queued(
    connection: Connection, was: JobRecord, status: str, reason: str, actor: str
) -> bool:
    """End a queued job: ``canceled``, or ``failed`` at its deadline."""
    values: dict[str, Any] = {"finish_reason": reason, "finished_at": now_ms()}
    values |= ended_search(was.prompt, was.text)  # an earlier attempt may have left a text
    if status == "failed":
        values["error_code"] = "deadline"
        values["error_message"] = "No worker could claim the job before its deadline."
    return move(connection, QUEUED, was, status, actor, **values)


def ended_search(prompt: str, text: str) -> dict[str, Any]:
    """The columns that a job that ends gets for the search."""
    return search_columns(prompt, text) | {"search_rules": RULES}


def locked_rows(connection: Connection, condition: Any) -> list[JobRecord]:
    """Lock and read the rows that a condition picks, skipping those that are locked already."""
    query = select(Job.__table__).where(condition).with_for_update(skip_locked=True)
    return [JobRecord.from_row(row) for row in connection.execute(query)]


def job_record(
    connection: Connection, job_id: str, *, lock: bool = False, sight: Sight = EVERYTHING
) -> JobRecord:
    """One job.

    Raises:
        NotFound: there is no such job within this sight.
    """
    query = select(Job.__table__).where(Job.id == job_id, sight.condition(Job.owner_id))
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
