"""Reads jobs, runs, pages of the history, and the queue's figures. Writes nothing.

The queries are in ``pages`` and ``queue_figures``; ``History`` opens their transactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, func, select

from textmill.core.access.principals import EVERYTHING, Sight
from textmill.core.database.connections import reading
from textmill.core.database.tables import Job, JobTrace, Run
from textmill.core.errors import NotFound
from textmill.core.jobs import queue_figures
from textmill.core.jobs.pages import (
    JOB_COLUMNS,
    Filters,
    Page,
    decode_cursor,
    encode_cursor,
    read_page,
)
from textmill.core.jobs.queue_figures import QueueNumbers
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.jobs.transitions import job_record

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_LIMIT",
    "Brief",
    "Filters",
    "History",
    "Page",
    "QueueNumbers",
    "brief_of",
    "decode_cursor",
    "encode_cursor",
]

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
EXPORT_BATCH = 200  # rows that one transaction of an export reads

# A job's status, attempt, whether its cancel was requested, and the length of its text: cheap to
# read for thousands of jobs, and different whenever an open event stream has something to send.
Brief = tuple[str, int, bool, int]


def brief_of(job: JobRecord) -> Brief:
    """The brief of a job that was read as a whole."""
    return (job.status, job.attempt, job.cancel_requested_at is not None, len(job.text))


class History:
    """Answers questions about what is stored. Safe to share between threads.

    A connection is held for the length of one call only.

    Args:
        engine: of the database.
        sight: the jobs and runs that it shows; all others do not exist for it.
    """

    def __init__(self, engine: Engine, sight: Sight = EVERYTHING) -> None:
        self._engine = engine
        self._sight = sight

    def seen_by(self, sight: Sight) -> History:
        """The history of what is within another sight."""
        return History(self._engine, sight)

    def job(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            NotFound: there is no such job.
        """
        with reading(self._engine) as connection:
            return job_record(connection, job_id, sight=self._sight)

    def jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Those of some jobs that exist, oldest first."""
        is_seen = self._sight.condition(Job.owner_id)
        query = select(*JOB_COLUMNS).where(Job.id.in_(job_ids), is_seen).order_by(Job.number)
        with reading(self._engine) as connection:
            return [JobRecord.from_row(row) for row in connection.execute(query)]

    def briefs(self, job_ids: Sequence[str]) -> dict[str, Brief]:
        """The briefs of those of some jobs that exist, by id."""
        query = select(
            Job.id,
            Job.status,
            Job.attempt,
            Job.cancel_requested_at.is_not(None).label("is_cancelling"),
            func.length(Job.text).label("num_characters"),
        ).where(Job.id.in_(job_ids), self._sight.condition(Job.owner_id))
        with reading(self._engine) as connection:
            rows = connection.execute(query)
            return {
                row.id: (row.status, row.attempt, bool(row.is_cancelling), row.num_characters)
                for row in rows
            }

    def run(self, run_id: str) -> RunRecord:
        """A run with its jobs in the order of variants and samples.

        Raises:
            NotFound: there is no such run, or all its jobs were deleted.
        """
        is_seen = self._sight.condition(Run.owner_id)
        own = select(Run.__table__).where(Run.id == run_id, is_seen)
        with reading(self._engine) as connection:
            run = connection.execute(own).first()
            if run is None:
                raise NotFound("There is no run with that id; it may have been deleted.")
            query = select(*JOB_COLUMNS).where(Job.run_id == run_id).order_by(Job.number)
            return RunRecord.from_rows(run, connection.execute(query))

    def page(self, filters: Filters) -> Page:
        """One page of the jobs that the filters pick.

        A page whose prompts and texts would be too large has fewer jobs than asked for, at least
        one, and a cursor to the rest.
        """
        with reading(self._engine) as connection:
            limit = filters.limit or DEFAULT_LIMIT
            rows, has_more = read_page(connection, filters, limit, self._sight)
        jobs = tuple(JobRecord.from_row(row) for row in rows)
        return Page(jobs, encode_cursor(jobs[-1].number) if has_more else None)

    def export(self, filters: Filters) -> Iterator[JobRecord]:
        """All jobs that the filters pick; no transaction stays open between two batches."""
        has_more = True
        while has_more:
            with reading(self._engine) as connection:
                rows, has_more = read_page(connection, filters, EXPORT_BATCH, self._sight)
            for row in rows:
                yield JobRecord.from_row(row)
            if rows:
                filters = replace(filters, before_number=rows[-1].number)

    def trace(self, job_id: str) -> list[dict[str, Any]]:
        """The trace of a job, one object per token; empty for a job without tokens.

        Raises:
            NotFound: there is no such job, no trace was requested, or the job has not ended.
        """
        with reading(self._engine) as connection:
            job = job_record(connection, job_id, sight=self._sight)
            query = select(JobTrace.tokens).where(JobTrace.job_id == job_id)
            tokens = connection.execute(query).scalar_one_or_none()
        if not job.has_trace:
            raise NotFound('This job has no trace; submit it with "trace": true to get one.')
        if tokens is None and not job.is_final:
            raise NotFound("The trace is written when the job ends; try again then.")
        return list(tokens or ())

    def queue(self) -> QueueNumbers:
        """The queue in figures."""
        with reading(self._engine) as connection:
            return queue_figures.queue_numbers(connection)

    def positions(self, jobs: Iterable[JobRecord]) -> dict[str, int]:
        """Each queued job's 1-based position in its model's queue, in one query.

        Jobs that are not queued, or were claimed since they were read, are left out.
        """
        queued = [job for job in jobs if job.status == "queued"]
        if not queued:
            return {}
        with reading(self._engine) as connection:
            return queue_figures.positions(connection, queued)

    def mean_seconds(self, model: str) -> float | None:
        """Mean time from start to end of a model's latest jobs; ``None`` if there are none."""
        with reading(self._engine) as connection:
            return queue_figures.mean_seconds(connection, model)

    def failures(self) -> dict[str, int]:
        """The number of jobs that failed recently, by error code."""
        with reading(self._engine) as connection:
            return queue_figures.failures(connection)
