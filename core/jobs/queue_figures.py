"""Figures of the queue: its depth, throughput, waiting times, positions, durations, failures.

Positions follow the order in which a model's jobs are claimed. Runs inside the transactions of
``core.jobs.history.History``; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, select

from textmill.core.database.connections import now_ms
from textmill.core.database.tables import CLAIM_ORDER, IS_QUEUED, Job
from textmill.core.jobs.records import JobRecord

RECENT_SECONDS = 300  # period of throughput, waiting times and failures
DURATION_WINDOW_SECONDS = 3_600  # older jobs do not show today's speed
NUM_DURATIONS = 50  # latest jobs of a model over which an estimate averages
MAX_WAITS = 1_000
_RANKED = (
    select(
        Job.id,
        func.row_number().over(partition_by=Job.model, order_by=CLAIM_ORDER).label("position"),
    )
    .where(IS_QUEUED, Job.model.in_(bindparam("models", expanding=True)))
    .subquery()
)
# Built once: every submission executes it, and building it took longer than executing it.
_POSITIONS = select(_RANKED).where(_RANKED.c.id.in_(bindparam("ids", expanding=True)))


@dataclass(frozen=True, slots=True)
class QueueNumbers:
    """The queue in figures; ``waiting_seconds`` are those of recent jobs, shortest first."""

    depth: int
    running: int
    jobs_per_minute: float
    tokens_per_second: float
    waiting_seconds: list[float]


def queue_numbers(connection: Connection) -> QueueNumbers:
    """The queue as it is now, and the throughput of the last ``RECENT_SECONDS``."""
    lately = and_(_ended_within(RECENT_SECONDS), Job.started_at.is_not(None))
    by_status = select(Job.status, func.count()).where(Job.status.in_(("queued", "running")))
    depths = {row[0]: row[1] for row in connection.execute(by_status.group_by(Job.status))}
    num_ended, num_tokens = connection.execute(
        select(func.count(), func.sum(Job.num_completion_tokens)).where(lately)
    ).one()
    waits = connection.execute(
        select(Job.created_at, Job.started_at)
        .where(lately)
        .order_by(Job.finished_at.desc())
        .limit(MAX_WAITS)
    ).all()
    return QueueNumbers(
        depth=depths.get("queued", 0),
        running=depths.get("running", 0),
        jobs_per_minute=num_ended * 60 / RECENT_SECONDS,
        tokens_per_second=int(num_tokens or 0) / RECENT_SECONDS,
        waiting_seconds=sorted(_seconds(row.created_at, row.started_at) for row in waits),
    )


def positions(connection: Connection, queued: Iterable[JobRecord]) -> dict[str, int]:
    """Each queued job's 1-based position in its model's queue, by id, in one query."""
    jobs = list(queued)
    asked = {"models": {job.model for job in jobs}, "ids": [job.id for job in jobs]}
    return {row.id: row.position for row in connection.execute(_POSITIONS, asked)}


def mean_seconds(connection: Connection, model: str) -> float | None:
    """Mean time from start to end of a model's latest jobs; ``None`` if there are none."""
    query = (
        select(Job.started_at, Job.finished_at)
        .where(
            _ended_within(DURATION_WINDOW_SECONDS),
            Job.model == model,
            Job.status == "succeeded",
        )
        .order_by(Job.finished_at.desc())
        .limit(NUM_DURATIONS)
    )
    found = [_seconds(row.started_at, row.finished_at) for row in connection.execute(query)]
    return fmean(found) if found else None


def failures(connection: Connection) -> dict[str, int]:
    """The number of jobs that failed in the last ``RECENT_SECONDS``, by error code."""
    query = (
        select(Job.error_code, func.count())
        .where(_ended_within(RECENT_SECONDS), Job.status == "failed")
        .group_by(Job.error_code)
    )
    return {row[0] or "unknown": row[1] for row in connection.execute(query)}


def _ended_within(seconds: int) -> Any:
    return Job.finished_at >= now_ms() - seconds * 1000


def _seconds(start: int | None, end: int | None) -> float:
    return max(0, (end or 0) - (start or 0)) / 1000  # never negative when a clock was set back
