"""Leases of running jobs: renewal by their workers, and what the sweeper sees of them.

Runs inside the transactions of ``core.jobs.store.JobStore``.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from textmill.core.database.connections import now_ms
from textmill.core.database.tables import JOBS, Job, Worker


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """Which of a worker's jobs are to be canceled, and which it no longer holds (ids)."""

    to_cancel: frozenset[str]
    lost: frozenset[str]


@dataclass(frozen=True, slots=True)
class HeldLease:
    """The lease of a running job as a sweeper sees it.

    Attributes:
        is_expired: by the database's clock, which may have been set since the lease was renewed.
        is_orphan: whether no worker has that id: the worker removed its row when it stopped, or
            its supervisor saw it die (``core.workers.forget_dead``).
    """

    job_id: str
    attempt: int
    lease_until: int
    is_expired: bool
    is_orphan: bool


def renew(
    connection: Connection, worker_id: str, attempts: dict[str, int], lease_ms: int
) -> LeaseStatus:
    """Renew the leases of a worker's jobs (id → attempt) and return their status."""
    if attempts:
        connection.execute(
            update(JOBS)
            .where(Job.id.in_(attempts), Job.worker_id == worker_id, Job.status == "running")
            .values(lease_until=now_ms() + lease_ms)
        )
    return lease_status(connection, worker_id, attempts)


def lease_status(connection: Connection, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
    """Compare a worker's jobs (id → attempt) with the database; changes nothing."""
    if not attempts:
        return LeaseStatus(frozenset(), frozenset())
    rows = connection.execute(
        select(Job.id, Job.attempt, Job.cancel_requested_at).where(
            Job.id.in_(attempts), Job.worker_id == worker_id, Job.status == "running"
        )
    ).all()
    held = {row.id: row for row in rows if row.attempt == attempts[row.id]}
    return LeaseStatus(
        to_cancel=frozenset(i for i, row in held.items() if row.cancel_requested_at is not None),
        lost=frozenset(attempts.keys() - held.keys()),
    )


def held_leases(connection: Connection, worker_id: str | None = None) -> list[HeldLease]:
    """The leases of all running jobs, or of those of one worker."""
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
