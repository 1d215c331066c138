"""Takes back what dead workers held, fails what waited too long, and repeats lost tickets.

Runs in every worker; the guarded transitions make it harmless that several do.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from core.jobs import JobStore
from core.workers import forget_unseen

SWEEP_SECONDS = 5.0
FORGET_WORKER_SECONDS = 3_600.0
log = structlog.get_logger(__name__)


class Sweeper:
    """One sweep at a time, called by a loop."""

    def __init__(self, store: JobStore, publish: Callable[[str], None], actor: str) -> None:
        """``publish`` sends a ticket for a model; ``actor`` is named in ``job_events``."""
        self._store = store
        self._publish = publish
        self._actor = actor

    def sweep(self) -> None:
        """Judge the leases and deadlines, and publish a ticket for every model that waits."""
        report = self._store.sweep(self._actor)
        for job_id, model in report.requeued:
            log.warning("job_requeued", job_id=job_id, model=model)
        for job_id in report.failed:
            log.warning("job_failed_by_sweeper", job_id=job_id)
        for job_id in report.canceled:
            log.info("job_canceled_by_sweeper", job_id=job_id)
        for model in self._store.models_waiting():
            self._publish(model)
        forget_unseen(self._store.engine, FORGET_WORKER_SECONDS)
