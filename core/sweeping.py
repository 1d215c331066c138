"""What becomes of jobs that nobody looks after: a worker that died, a queue that nobody serves.

``JobStore.sweep`` runs it; nothing else may.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_

from core.db import now_ms
from core.models import IS_QUEUED, IS_RUNNING, Job
from core.records import JobRecord
from core.transitions import RUNNING, end_queued, ended_search, locked_rows, move

MAX_LOSSES = 3  # a job whose worker died this often is not tried again
RETRY_DELAY_SECONDS = 1.0  # times the losses so far: a crash loop must not spin


@dataclass(slots=True)
class SweepReport:
    """What one sweep changed; ``requeued`` holds (job id, model)."""

    requeued: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)


def sweep(connection: Connection, actor: str) -> SweepReport:
    """Take back jobs whose lease ran out, and fail those that waited beyond their deadline."""
    report = SweepReport()
    expired = and_(IS_RUNNING, Job.lease_until < now_ms())
    for was in locked_rows(connection, expired):
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


def _take_back(connection: Connection, was: JobRecord, actor: str, report: SweepReport) -> None:
    guard = RUNNING.where(Job.lease_until < now_ms())
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
        delay_ms = int(RETRY_DELAY_SECONDS * 1000) * losses
        values = lost | {"worker_id": None, "not_before": now_ms() + delay_ms}
        if move(connection, guard, was, "queued", actor, **values):
            report.requeued.append((was.id, was.model))
