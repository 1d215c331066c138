"""Presents jobs and runs with the queue positions of queued jobs."""

from __future__ import annotations

from collections.abc import Sequence

from textmill.backend.response_models import JobView, QueuePlace, RunView
from textmill.backend.serializers import job_view, run_view
from textmill.backend.services.best_effort import BestEffort
from textmill.backend.services.queue_positions import UNKNOWN_POSITION, QueuePositions
from textmill.core.jobs.records import JobRecord, RunRecord


class JobViews:
    """Makes the documents that clients get.

    Queue positions are best effort: the jobs are already stored or read at this point, and a
    failed estimate must not turn that into an error.
    """

    def __init__(self, positions: QueuePositions, estimates: BestEffort) -> None:
        self._positions = positions
        self._estimates = estimates

    def job(self, job: JobRecord) -> JobView:
        """Present one job."""
        return self.jobs([job])[0]

    def jobs(self, jobs: Sequence[JobRecord]) -> list[JobView]:
        """Present several jobs with one query for their queue positions."""
        positions: dict[str, QueuePlace] = {}
        if any(job.status == "queued" for job in jobs):
            positions = self._estimates.ask(lambda: self._positions.read(jobs)) or {}
        return [job_view(job, positions.get(job.id, UNKNOWN_POSITION)) for job in jobs]

    def run(self, run: RunRecord) -> RunView:
        """Present a run with its jobs."""
        return run_view(run, self.jobs(run.jobs))
