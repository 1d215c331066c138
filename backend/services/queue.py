"""The queue: its depth, the workers, recent throughput, and what is left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Engine

from textmill.backend.response_models import QueueView
from textmill.backend.serializers import queue_view
from textmill.backend.services.best_effort import BestEffort
from textmill.core.catalog.live import LiveCatalog
from textmill.core.events import EventBus
from textmill.core.jobs.history import History
from textmill.core.problems import DISK_SENTENCE, MODELS_FILE, SeenProblem, problems
from textmill.core.redaction import without_paths
from textmill.core.workers import SeenWorker, seen_workers, worker_host


class QueueService:
    """Reads the state of the queue and of the workers."""

    def __init__(
        self,
        engine: Engine,
        history: History,
        bus: EventBus,
        catalog: LiveCatalog,
        estimates: BestEffort,
        is_disk_full: Callable[[], bool],
        *,
        hides_hosts: bool = False,
    ) -> None:
        self._engine = engine
        self._history = history
        self._bus = bus
        self._catalog = catalog
        self._estimates = estimates
        self._is_disk_full = is_disk_full
        self._hides_hosts = hides_hosts

    def without_hosts(self) -> QueueService:
        """The same service, which shows neither host names nor process ids."""
        return QueueService(
            self._engine,
            self._history,
            self._bus,
            self._catalog,
            self._estimates,
            self._is_disk_full,
            hides_hosts=True,
        )

    def state(self) -> QueueView:
        """Return the state of the queue."""
        return queue_view(
            self._history.queue(),
            self.workers(),
            self.problems(),
            is_redis_up=self._bus.ping(),
        )

    def workers(self) -> list[SeenWorker]:
        """List the workers that were seen in the last 30 s."""
        found = seen_workers(self._engine)
        if not self._hides_hosts:
            return found
        return [replace(worker, id=f"worker {n}") for n, worker in enumerate(found, 1)]

    def has_workers(self) -> bool:
        """Return whether a worker was seen; true if that cannot be read in time."""
        return self._estimates.ask(lambda: bool(self.workers())) is not False

    def failures(self) -> dict[str, int]:
        """Count the jobs that failed in the last five minutes, by error code."""
        return self._history.failures()

    def problems(self) -> list[SeenProblem]:
        """List what workers leave out, and what is wrong with this process's models file.

        Visitors read the reasons, so they name files without their folders; the log and
        ``textmill doctor`` give the paths.
        """
        found = problems(self._engine)
        own = self._catalog.problem
        if own is not None and not any(item.reason == own for item in found):
            at = int(time.time() * 1000)
            found.append(SeenProblem(worker_host(), "models_file", MODELS_FILE, own, at))
        if self._is_disk_full():
            at = int(time.time() * 1000)
            found.append(SeenProblem(worker_host(), "disk", "database", DISK_SENTENCE, at))
        shown = [replace(item, reason=without_paths(item.reason)) for item in found]
        return [replace(item, host="") for item in shown] if self._hides_hosts else shown
