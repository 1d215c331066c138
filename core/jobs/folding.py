"""Folds the records of jobs that ended long ago: of each, the first and the last event are kept.

What remains says when a job was accepted and how it ended, which is what ``job_events`` proves of
old jobs, deleted ones included. The events in between are deleted, a batch of rows at a time, from
the oldest on.
"""

from __future__ import annotations

from sqlalchemy import Engine, delete, select

from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import JobEvent
from textmill.core.statuses import FINAL_STATUSES

KEPT_DAYS = 7  # how long all events of a job are kept
BATCH_EVENTS = 500  # rows that one step reads, and at most deletes: milliseconds
_DAY_MS = 86_400_000


def fold(engine: Engine, after_number: int, kept_days: float = KEPT_DAYS) -> int:
    """Fold a batch of events.

    Args:
        engine: of the database.
        after_number: the number that the last call returned, 0 at first.
        kept_days: events that are younger are kept, and so are all events after the first such one.

    Returns:
        The number of the last event that was considered; ``after_number`` if none is left.
    """
    is_old = (JobEvent.at < now_ms() - int(kept_days * _DAY_MS)).label("is_old")
    batch = (
        select(JobEvent.number, JobEvent.job_id, JobEvent.from_status, JobEvent.to_status, is_old)
        .where(JobEvent.number > after_number)
        .order_by(JobEvent.number)
        .limit(BATCH_EVENTS)
    )
    last, between = after_number, {}
    with reading(engine) as connection:
        for row in connection.execute(batch):
            if not row.is_old:
                break
            last = row.number
            if row.from_status is not None and row.to_status not in FINAL_STATUSES:
                between[row.number] = row.job_id
        has_ended = (
            select(JobEvent.job_id)
            .where(JobEvent.job_id.in_(set(between.values())))
            .where(JobEvent.to_status.in_(FINAL_STATUSES))
        )
        ended = set(connection.execute(has_ended).scalars()) if between else set()
    numbers = [number for number, job_id in between.items() if job_id in ended]
    if numbers:
        with writing(engine) as connection:
            connection.execute(delete(JobEvent).where(JobEvent.number.in_(numbers)))
    return last
