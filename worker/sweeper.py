"""Takes back the jobs of dead workers, fails jobs past their deadline, and repeats lost tickets.

Runs in every worker, which the guarded transitions make harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import structlog

from textmill.core.jobs.leases import HeldLease
from textmill.core.jobs.store import JobStore
from textmill.core.workers import forget, unseen_workers
from textmill.worker.awake_clock import AwakeClock
from textmill.worker.intervals import Intervals

FORGET_WORKER_SECONDS = 3_600.0
log = structlog.get_logger(__name__)


class LeaseObserver:
    """Decides which leases belong to dead workers, by its own observation rather than by clocks.

    An expired lease alone proves little: the whole machine may have been paused, the database
    unreachable, or a clock set. A worker counts as dead if its lease is expired and this process,
    while it was running, has seen no renewal for a while; or, in case the database's clock was set
    back, if the lease was not renewed for longer than any lease lasts.

    Args:
        intervals: how long a worker must be silent.
        clock: in seconds; leaves out pauses of this process.
    """

    def __init__(self, intervals: Intervals, clock: Callable[[], float] | None = None) -> None:
        self._intervals = intervals
        self._clock = clock or AwakeClock(intervals.sweep)
        self._seen_at: dict[tuple[str, int, int], float] = {}

    def dead(self, leases: Sequence[HeldLease]) -> list[HeldLease]:
        """Observe the leases of other workers; returns those to take back."""
        now = self._clock()
        self._seen_at = {key: self._seen_at.get(key, now) for key in map(_key, leases)}
        return [lease for lease in leases if self._is_dead(lease, now - self._seen_at[_key(lease)])]

    def _is_dead(self, lease: HeldLease, silent_seconds: float) -> bool:
        if not lease.is_expired:
            return silent_seconds >= self._intervals.lease + self._intervals.silence
        return lease.is_orphan or silent_seconds >= self._intervals.silence


class Sweeper:
    """Sweeps; a loop calls it, one sweep at a time.

    Args:
        store: of the leases.
        publish: publishes a ticket for a model.
        actor: the name that ``job_events`` records.
        living: the jobs (id → attempt) that this process works on; it never takes them back.
        intervals: how long a worker must be silent.
    """

    def __init__(
        self,
        store: JobStore,
        publish: Callable[[str], None],
        actor: str,
        *,
        living: Callable[[], Mapping[str, int]] = dict,
        intervals: Intervals | None = None,
    ) -> None:
        self._store = store
        self._publish = publish
        self._actor = actor
        self._living = living
        self._observer = LeaseObserver(intervals or Intervals())
        self._unseen: frozenset[str] = frozenset()

    def sweep(self) -> None:
        """Check leases and deadlines, and publish a ticket for every model with eligible jobs."""
        leases = self._store.held_leases()
        living = self._living()  # read after the leases, so that they contain no newer claim
        others = [lease for lease in leases if living.get(lease.job_id) != lease.attempt]
        report = self._store.sweep(self._actor, self._observer.dead(others))
        for job_id, model in report.requeued:
            log.warning("job_requeued", job_id=job_id, model=model)
        for job_id in report.failed:
            log.warning("job_failed_by_sweeper", job_id=job_id)
        for job_id in report.canceled:
            log.info("job_canceled_by_sweeper", job_id=job_id)
        for model in self._store.models_waiting():
            self._publish(model)
        self._forget_unseen()

    def _forget_unseen(self) -> None:
        """Delete workers unseen in two sweeps; once may be due to a clock that was set."""
        unseen = unseen_workers(self._store.engine, FORGET_WORKER_SECONDS)
        for worker_id in unseen & self._unseen:
            forget(self._store.engine, worker_id)
        self._unseen = unseen


def _key(lease: HeldLease) -> tuple[str, int, int]:
    return lease.job_id, lease.attempt, lease.lease_until
