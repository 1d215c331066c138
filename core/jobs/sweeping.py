"""What becomes of jobs that nobody looks after: a worker that died, a queue that nobody serves.

``JobStore.sweep`` runs it; nothing else may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, select, tuple_

from textmill.core.database.connections import now_ms
from textmill.core.database.tables import IS_QUEUED, IS_RUNNING, Job, Worker
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.transitions import RUNNING, end_queued, ended_search, locked_rows, move

MAX_LOSSES = 3  # a job whose worker died this often is not tried again
RETRY_DELAY_SECONDS = 1.0  # times the losses before: a crash loop must not spin


@dataclass(frozen=True, slots=True)
class HeldLease:
    """The lease of a running job as a sweeper sees it.

    Attributes:
        is_expired: by the database's clock, which may have been set meanwhile.
        is_orphan: whether no worker of that id is known: it said goodbye, or its supervisor saw it
            die (``core.workers.forget_dead``).
    """

    job_id: str
    attempt: int
    lease_until: int
    is_expired: bool
    is_orphan: bool


@dataclass(slots=True)
class SweepReport:
    """What one sweep changed; ``requeued`` holds (job id, model)."""

    requeued: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)


def held_leases(connection: Connection, worker_id: str | None = None) -> list[HeldLease]:
    """The leases of all jobs that run, or of those of one worker."""
    query = (
        select(
            Job.id.label("job_id"),
            Job.attempt,
            Job.lease_until,
            (Job.lease_until < now_ms()).label("is_expired"),
            Worker.id.is_(None).label("is_orphan"),
        )
        .join(Worker, Worker.id == Job.worker_id, isouter=True)
        .where(Job.status == "running", Job.lease_until.is_not(None))
    )
    if worker_id is not None:
        query = query.where(Job.worker_id == worker_id)
    return [HeldLease(**row._mapping) for row in connection.execute(query)]


def sweep(
    connection: Connection, actor: str, dead: Sequence[HeldLease] | None = None
) -> SweepReport:
    """Take back jobs of dead workers, and fail those that waited beyond their deadline.

    Args:
        connection: in a transaction that writes.
        actor: who sweeps.
        dead: the leases to take back, each unless it was renewed since it was seen. ``None``: all
            that are expired by the database's clock.
    """
    report = SweepReport()
    for was in _taken_back(connection, dead):
        _take_back(connection, was, actor, report)
    # An older release could give back a job that was asked to cancel, which no worker claims.
    asked = and_(IS_QUEUED, Job.cancel_requested_at.is_not(None))
    for was in locked_rows(connection, asked):
        if end_queued(connection, was, "canceled", "canceled", actor):
            report.canceled.append(was.id)
    late = and_(IS_QUEUED, Job.deadline_at < now_ms())
    for was in locked_rows(connection, late):
        if end_queued(connection, was, "failed", "deadline", actor):
            report.failed.append(was.id)
    return report


def _taken_back(connection: Connection, dead: Sequence[HeldLease] | None) -> list[JobRecord]:
    if dead is None:
        condition = Job.lease_until < now_ms()
    elif dead:
        seen = [(lease.job_id, lease.attempt, lease.lease_until) for lease in dead]
        condition = tuple_(Job.id, Job.attempt, Job.lease_until).in_(seen)
    else:
        return []
    return locked_rows(connection, and_(IS_RUNNING, condition))


def _take_back(connection: Connection, was: JobRecord, actor: str, report: SweepReport) -> None:
    guard = RUNNING.where(Job.lease_until == was.lease_until)
    losses = was.lost_count + 1
    lost: dict[str, Any] = {"lost_count": losses, "lease_until": None}
    ended = {"finished_at": now_ms(), **ended_search(was.prompt, was.text)}
    if was.cancel_requested_at is not None:
        values = lost | ended | {"finish_reason": "canceled"}
        if move(connection, guard, was, "canceled", actor, **values):
            report.canceled.append(was.id)
    elif losses >= MAX_LOSSES:
        error = {
            "finish_reason": "error",
            "error_code": "worker_lost",
            "error_message": f"The worker was lost {losses} times while it wrote this text.",
        }
        if move(connection, guard, was, "failed", actor, **lost, **ended, **error):
            report.failed.append(was.id)
    else:
        delay_ms = int(RETRY_DELAY_SECONDS * 1000) * was.lost_count
        values = lost | {"worker_id": None, "not_before": now_ms() + delay_ms}
        if move(connection, guard, was, "queued", actor, **values):
            report.requeued.append((was.id, was.model))
