"""Takes back the jobs of dead workers, and ends queued jobs that no worker claims in time.

Only ``JobStore.sweep`` may call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, tuple_

from textmill.core.database.connections import now_ms
from textmill.core.database.tables import IS_QUEUED, IS_RUNNING, Job
from textmill.core.jobs.leases import HeldLease
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.transitions import RUNNING, end_queued, ended_search, locked_rows, move

MAX_LOSSES = 3  # a job that was lost this often is not tried again
RETRY_DELAY_SECONDS = 1.0  # times the losses before, so that crashing workers is no tight loop


@dataclass(slots=True)
class SweepReport:
    """What one sweep changed; ``requeued`` holds (job id, model)."""

    requeued: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)


def sweep(
    connection: Connection, actor: str, dead: Sequence[HeldLease] | None = None
) -> SweepReport:
    """Take back jobs of dead workers, and fail queued jobs that are past their deadline.

    Args:
        connection: in a transaction that writes.
        actor: the name that ``job_events`` records.
        dead: the leases to take back; one that was renewed since it was read is skipped. ``None``:
            all that are expired by the database's clock.
    """
    report = SweepReport()
    for was in _taken_back(connection, dead):
        _take_back(connection, was, actor, report)
    # An older release could requeue a job with a requested cancel, which no worker claims.
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
