"""Polls the table while slots are free, so that jobs run without Redis too.

Calls the same function as the Celery task. Knows nothing of tickets.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from textmill.worker.job_worker import JobWorker


class Poller:
    """Starts ``work`` on its own threads when the table has eligible jobs.

    Args:
        runner: runs the jobs.
        has_eligible: a cheap read, which keeps an idle worker from taking write locks.
        num_slots: the number of threads.
    """

    def __init__(self, runner: JobWorker, has_eligible: Callable[[], bool], num_slots: int) -> None:
        self._runner = runner
        self._has_eligible = has_eligible
        self._pool = ThreadPoolExecutor(num_slots, thread_name_prefix="poller-work")

    def look(self) -> None:
        """Poll once; starts as many threads as slots are free."""
        num_free = self._runner.num_free
        if num_free and self._has_eligible():
            for _ in range(num_free):
                self._pool.submit(self._runner.work)

    def close(self) -> None:
        """Start no further work; the drain ends running jobs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
