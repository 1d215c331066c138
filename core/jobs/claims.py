"""Claims: which queued jobs are eligible, and how one becomes a worker's running job.

Runs inside the transactions of ``core.jobs.store.JobStore``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Integer, bindparam, select

from textmill.core.database.connections import now_ms
from textmill.core.database.tables import CLAIM_ORDER, IS_QUEUED, JOBS, Job
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.sweeping import MAX_LOSSES
from textmill.core.jobs.transitions import QUEUED, move

# Built once: building a statement costs as much as executing it.
_IS_ELIGIBLE = (
    IS_QUEUED,
    Job.model.in_(bindparam("models", expanding=True)),
    Job.not_before <= now_ms(),
    Job.deadline_at >= now_ms(),
    Job.cancel_requested_at.is_(None),
)
_ELIGIBLE = select(Job.id).where(*_IS_ELIGIBLE).limit(1)
CANDIDATE = (
    select(JOBS, now_ms().label("now"))
    .where(*_IS_ELIGIBLE, Job.lost_count <= bindparam("most_losses", type_=Integer))
    .order_by(*CLAIM_ORDER)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_CLAIMABLE = QUEUED.where(Job.cancel_requested_at.is_(None))


def has_eligible(connection: Connection, models: Sequence[str]) -> bool:
    """Whether a worker of these models could claim a job now; takes no lock."""
    return connection.execute(_ELIGIBLE, {"models": models}).first() is not None


def models_waiting(connection: Connection) -> list[str]:
    """The models that have eligible jobs."""
    is_waiting = (IS_QUEUED, Job.not_before <= now_ms(), Job.cancel_requested_at.is_(None))
    return list(connection.execute(select(Job.model).where(*is_waiting).distinct()).scalars())


def claim(
    connection: Connection,
    worker_id: str,
    models: Sequence[str],
    lease_ms: int,
    *,
    most_losses: int,
    waits_for_first: bool,
) -> JobRecord | None:
    """Claim the first eligible job; ``JobStore.claim`` describes the arguments."""
    row = _candidate(connection, models, MAX_LOSSES)
    if row is not None and row.lost_count > most_losses:
        row = None if waits_for_first else _candidate(connection, models, most_losses)
    if row is None:
        return None
    was = JobRecord.from_row(row)
    claimed: dict[str, Any] = {
        "attempt": was.attempt + 1,
        "worker_id": worker_id,
        "lease_until": row.now + lease_ms,
        "text": "",
        "num_completion_tokens": 0,
        "first_token_at": None,
        "started_at": row.now,
    }
    if not move(connection, _CLAIMABLE, was, "running", worker_id, **claimed):
        return None
    return replace(was, status="running", **claimed)


def _candidate(connection: Connection, models: Sequence[str], most_losses: int) -> Any:
    values = {"models": models, "most_losses": most_losses}
    return connection.execute(CANDIDATE, values).first()
