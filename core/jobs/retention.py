"""Deletes jobs that ended long ago, in small batches, with their traces, events and runs.

Starred and shared jobs, and the jobs of shared runs, are kept.
"""

from __future__ import annotations

from sqlalchemy import Engine, delete, or_, select

from textmill.core.access.usage import forget_usage
from textmill.core.database.access_tables import Share
from textmill.core.database.connections import now_ms, writing
from textmill.core.database.tables import Job, JobEvent, JobTrace, Run

BATCH_JOBS = 50  # of one transaction, which takes milliseconds
DAY_MS = 86_400_000


def expire(engine: Engine, keep_days: float) -> int:
    """Delete a batch of the oldest expired jobs; returns how many.

    Args:
        engine: of the database.
        keep_days: how long a job is kept after it ended.
    """
    is_current = or_(Share.expires_at.is_(None), Share.expires_at > now_ms())
    of_job = Share.object_id.in_([Job.id, Job.run_id])
    is_shared = select(Share.token).where(of_job, is_current).exists()
    cutoff = now_ms() - int(keep_days * DAY_MS)
    query = (
        select(Job.id, Job.run_id)
        .where(Job.finished_at < cutoff, ~Job.is_starred, ~is_shared)
        .order_by(Job.finished_at)
        .limit(BATCH_JOBS)
        .with_for_update(skip_locked=True)
    )
    with writing(engine) as connection:
        rows = connection.execute(query).all()
        ids, run_ids = [row.id for row in rows], {row.run_id for row in rows if row.run_id}
        if ids:
            connection.execute(delete(JobTrace).where(JobTrace.job_id.in_(ids)))
            connection.execute(delete(JobEvent).where(JobEvent.job_id.in_(ids)))
            connection.execute(delete(Job).where(Job.id.in_(ids)))
            connection.execute(delete(Share).where(Share.object_id.in_([*ids, *run_ids])))
        if run_ids:
            is_left = select(Job.id).where(Job.run_id == Run.id).exists()
            connection.execute(delete(Run).where(Run.id.in_(run_ids), ~is_left))
        forget_usage(connection)
    return len(ids)
