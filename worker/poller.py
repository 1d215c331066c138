"""Looks into the table while slots are free, so that work goes on with Redis gone.

Calls the very function that the Celery task calls. Knows nothing of tickets.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from textmill.worker.job_worker import JobWorker


class Poller:
    """Starts ``work`` on threads of its own when the table has something."""

    def __init__(self, runner: JobWorker, has_eligible: Callable[[], bool], num_slots: int) -> None:
        """``has_eligible`` is a cheap read; it keeps an idle worker from taking write locks."""
        self._runner = runner
        self._has_eligible = has_eligible
        self._pool = ThreadPoolExecutor(num_slots, thread_name_prefix="poller-work")

    def look(self) -> None:
        """One look; as many threads set to work as slots are free."""
        num_free = self._runner.num_free
        if num_free and self._has_eligible():
            for _ in range(num_free):
                self._pool.submit(self._runner.work)

    def close(self) -> None:
        """Start nothing more; what runs is the drain's business."""
        self._pool.shutdown(wait=False, cancel_futures=True)
