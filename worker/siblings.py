"""Detects the death of another worker on this machine, and returns its jobs at once.

Needs Linux's process file descriptors (``pidfd_open``, since 5.3). Without them, or if no
sibling is alive, the supervisor of ``up`` returns the jobs about a second later. Without a
supervisor, the jobs wait until the lease has expired.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

import structlog

from textmill.core.dead_workers import noted_workers, recover_worker
from textmill.core.jobs.store import JobStore

LOOK_SECONDS = 0.25  # between two searches for new siblings; a death is noticed at once
log = structlog.get_logger(__name__)


class SiblingWatch:
    """Holds a process file descriptor of every other worker of the same state folder.

    Not thread-safe: one loop calls ``look``, and ``close`` is called once that loop has ended.

    Args:
        store: of the jobs.
        home: the state folder that the siblings share.
        worker_id: of this worker.
        on_requeued: called when jobs of a dead sibling are queued again.
    """

    def __init__(
        self, store: JobStore, home: Path, worker_id: str, on_requeued: Callable[[], None]
    ) -> None:
        self._store = store
        self._home = home
        self._worker_id = worker_id
        self._on_requeued = on_requeued
        self._watched: dict[int, tuple[int, str]] = {}  # descriptor → process, worker id
        self._dead: dict[str, int] = {}  # worker id → process, until its jobs are returned

    def look(self, seconds: float = LOOK_SECONDS) -> None:
        """Watch for the time, or until a sibling has ended.

        Raises:
            StorageUnavailable: the database is unavailable; the next call tries again.
        """
        self._watch_new()
        self._await_end(seconds)
        for worker_id, pid in list(self._dead.items()):
            self._recover(worker_id, pid)
            del self._dead[worker_id]

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in list(self._watched):
            self._forget(descriptor)

    def _watch_new(self) -> None:
        known = {worker_id for _, worker_id in self._watched.values()}
        for pid, worker_id in noted_workers(self._home).items():
            if worker_id not in known | {self._worker_id} and worker_id not in self._dead:
                self._watch(pid, worker_id)

    def _watch(self, pid: int, worker_id: str) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._dead[worker_id] = pid
        except (AttributeError, OSError):  # another system, or a sandbox without the call
            pass
        else:
            self._watched[descriptor] = pid, worker_id

    def _await_end(self, seconds: float) -> None:
        poll = select.poll()
        for descriptor in self._watched:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(seconds * 1000):
            pid, worker_id = self._watched[descriptor]
            self._dead[worker_id] = pid
            self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        del self._watched[descriptor]
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def _recover(self, worker_id: str, pid: int) -> None:
        report = recover_worker(
            self._store, self._home, pid, f"sibling:{self._worker_id}", expected_id=worker_id
        )
        if report is None:
            return
        log.warning("sibling_died", worker=worker_id, jobs_requeued=len(report.requeued))
        if report.requeued:
            self._on_requeued()
