"""The intervals and waiting times of a worker, in one place because they depend on each other.

They are not settings: they are chosen together, and only tests use shorter ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from textmill.core.jobs.store import LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class Intervals:
    """Seconds.

    Attributes:
        lease: how long a job stays a worker's without a renewal.
        heartbeat: between two renewals; six of them fit into a lease.
        progress: between two writes of the text so far; the longest delay of a cancel, and of text
            for readers without Redis.
        poll: between two polls of the table; the cost of a lost ticket.
        sweep: between two checks of the leases of other workers.
        silence: how long a sweeper itself must have seen no renewal of an expired lease. In that
            time a worker that was paused too, or had no database, renews its leases first.
        settled: a job that was lost before counts as harmless after this time; jobs that kill a
            worker mostly do so in the prefill or the first steps.
    """

    lease: float = LEASE_SECONDS
    heartbeat: float = 5.0
    progress: float = 1.0
    poll: float = 2.0
    sweep: float = 5.0
    silence: float = 15.0
    settled: float = 5.0
