"""The heartbeat: renews the worker's leases, and saves the texts of its running jobs.

Leases are renewed unless the engine makes no step although it has work. The store decides which
jobs to cancel and which are lost; this module passes that on to the engine.
"""

from __future__ import annotations

import structlog

from textmill.core.jobs.store import JobStore, LeaseStatus
from textmill.core.workers import WorkerState, beat
from textmill.engine import InferenceEngine
from textmill.worker.job_worker import JobWorker
from textmill.worker.watchdog import STALL_SECONDS, StallDetector

log = structlog.get_logger(__name__)


class Heartbeat:
    """Renews the worker's leases and its row in ``workers``.

    Attributes:
        stalled_seconds: how long the engine had made no step, at the last beat.
    """

    def __init__(
        self, *, store: JobStore, engine: InferenceEngine, runner: JobWorker, worker_id: str
    ) -> None:
        self._store = store
        self._engine = engine
        self._runner = runner
        self._worker_id = worker_id
        self._stall = StallDetector(engine)
        self.stalled_seconds = 0.0

    def living(self) -> dict[str, int]:
        """The jobs (id → attempt) that this worker works on; none if its engine is stalled."""
        return {} if self.stalled_seconds > STALL_SECONDS else self._runner.attempts()

    def beat(self) -> None:
        """Renew once; the leases of a stalled engine are left to run out."""
        self.stalled_seconds = self._stall.stalled_seconds()
        if self.stalled_seconds > STALL_SECONDS:
            log.error("engine_stalled", seconds=round(self.stalled_seconds, 1))
            return
        apply(self._store.renew(self._worker_id, self._runner.attempts()), self._runner)
        beat(
            self._store.engine,
            WorkerState(
                id=self._worker_id,
                models=list(self._runner.models),
                num_slots=self._engine.num_slots,
                num_active=self._runner.num_active,
                tokens_per_second=self._engine.statistics().tokens_per_second,
            ),
        )

    def save_progress(self) -> None:
        """Store the text written since the last call, and stop canceled and lost jobs."""
        attempts = self._runner.attempts()
        if not attempts:
            return
        progress = self._runner.progress()
        if progress:
            self._store.save_progress(self._worker_id, progress)
        apply(self._store.lease_status(self._worker_id, attempts), self._runner)


def apply(lease_status: LeaseStatus, runner: JobWorker) -> None:
    """Stop the jobs that were canceled or lost."""
    if lease_status.to_cancel:
        runner.stop_jobs(lease_status.to_cancel, "canceled")
    # A job that ended since the query is no longer active: nothing happens.
    if lease_status.lost:
        runner.stop_jobs(lease_status.lost, "lost")
