"""Writes the ends of jobs to the store, and waits for the database while it is unavailable."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from textmill.core.errors import Conflict, StorageUnavailable, Unstorable
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, Outcome

RETRY_WRITE_SECONDS = 1.0  # between attempts to write a result while the database is unavailable
Written = TypeVar("Written")
log = structlog.get_logger(__name__)


class ResultWriter:
    """Writes one worker's results; safe to share between threads.

    Args:
        store: of the jobs.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._giving_up = threading.Event()

    @property
    def is_waiting(self) -> bool:
        """Whether results wait for the database; then no further job should be claimed."""
        with self._lock:
            return self._num_waiting > 0

    def finish(self, job: JobRecord, outcome: Outcome) -> Outcome | None:
        """Write an outcome; if the database cannot store it, the job fails instead.

        Returns:
            The outcome as written; ``None`` if the job belongs to another attempt by now, or the
            worker stopped first.
        """
        try:
            return self._write(lambda: self._store.finish(job, outcome))
        except (Unstorable, Conflict):  # another attempt would fail alike and delay other results
            log.exception("outcome_cannot_be_stored", status=outcome.status)
        failed = replace(
            outcome,
            status="failed",
            text="",
            finish_reason="error",
            error_code="unstorable",
            error_message="The database cannot store the text that was written.",
            trace=None,
        )
        return self._write(lambda: self._store.finish(job, failed))

    def release(
        self, job: JobRecord, *, delay_seconds: float = 0.0, counts_as_loss: bool = False
    ) -> None:
        """Return a job to the queue."""
        self._write(
            lambda: self._store.release(
                job, delay_seconds=delay_seconds, counts_as_loss=counts_as_loss
            )
        )

    def give_up(self) -> None:
        """Stop waiting for the database; the leases run out, and other workers repeat the jobs."""
        self._giving_up.set()

    def _write(self, write: Callable[[], Written]) -> Written | None:
        is_waiting = False
        try:
            while True:
                try:
                    return write()
                except StorageUnavailable as error:
                    if not is_waiting:
                        is_waiting = True
                        self._count_waiting(1)
                        log.warning("result_waits_for_database", reason=str(error))
                    if self._giving_up.wait(RETRY_WRITE_SECONDS):
                        return None
        finally:
            if is_waiting:
                self._count_waiting(-1)

    def _count_waiting(self, change: int) -> None:
        with self._lock:
            self._num_waiting += change
