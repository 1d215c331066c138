"""Takes back what dead workers held, fails what waited too long, and repeats lost tickets.

Runs in every worker; the guarded transitions make it harmless that several do.
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
    """Tells the leases of the dead by what it has seen itself, whatever the clocks say.

    A lease that is only expired proves little: the whole machine may have been paused, the database
    away, or a clock set. Here a worker is dead when its lease is expired and was not renewed for a
    while that this process was awake to see; or, should the database's clock have been set back,
    when it was not renewed for longer than any lease lasts.
    """

    def __init__(self, intervals: Intervals, clock: Callable[[], float] | None = None) -> None:
        """Nothing was seen yet; ``clock`` leaves out what this process slept through."""
        self._intervals = intervals
        self._clock = clock or AwakeClock(intervals.sweep)
        self._seen_at: dict[tuple[str, int, int], float] = {}

    def dead(self, leases: Sequence[HeldLease]) -> list[HeldLease]:
        """Look at the leases of others; those to take back."""
        now = self._clock()
        self._seen_at = {key: self._seen_at.get(key, now) for key in map(_key, leases)}
        return [lease for lease in leases if self._is_dead(lease, now - self._seen_at[_key(lease)])]

    def _is_dead(self, lease: HeldLease, silent_seconds: float) -> bool:
        if not lease.is_expired:
            return silent_seconds >= self._intervals.lease + self._intervals.silence
        return lease.is_orphan or silent_seconds >= self._intervals.silence


class Sweeper:
    """One sweep at a time, called by a loop."""

    def __init__(
        self,
        store: JobStore,
        publish: Callable[[str], None],
        actor: str,
        *,
        living: Callable[[], Mapping[str, int]] = dict,
        intervals: Intervals | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            store: where the leases are.
            publish: sends a ticket for a model.
            actor: is named in ``job_events``.
            living: the jobs (id → attempt) that this process holds and works on; it never takes
                them away from itself.
            intervals: how long a worker must be silent.
        """
        self._store = store
        self._publish = publish
        self._actor = actor
        self._living = living
        self._observer = LeaseObserver(intervals or Intervals())
        self._unseen: frozenset[str] = frozenset()

    def sweep(self) -> None:
        """Judge the leases and deadlines, and publish a ticket for every model that waits."""
        leases = self._store.held_leases()
        living = self._living()  # asked after the leases: what was claimed meanwhile is not among
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
        """Forget workers that are long gone; at the second look: a clock may have been set."""
        unseen = unseen_workers(self._store.engine, FORGET_WORKER_SECONDS)
        for worker_id in unseen & self._unseen:
            forget(self._store.engine, worker_id)
        self._unseen = unseen


def _key(lease: HeldLease) -> tuple[str, int, int]:
    return lease.job_id, lease.attempt, lease.lease_until
