"""How often a worker does what, and how long it waits: one place for times that depend on another.

Settings do not change them: they are chosen together, and the tests alone are in more of a hurry.
"""

from __future__ import annotations

from dataclasses import dataclass

from textmill.core.jobs.store import LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class Intervals:
    """Seconds.

    Attributes:
        lease: for how long a worker may regard a job as its own without a word.
        heartbeat: between two renewals; six chances within a lease.
        progress: what a reader without Redis waits for, and a cancellation at most.
        poll: between two looks for jobs; the cost of a lost ticket.
        sweep: between two looks at the leases of others.
        silence: for how long a sweeper itself must have seen no renewal of an expired lease. In
            that time a worker that was paused as well, or whose database was away, renews first.
        settled: after so long a job that was lost before is taken for harmless to its neighbours;
            what kills a worker mostly does so in the prefill or the first steps.
    """

    lease: float = LEASE_SECONDS
    heartbeat: float = 5.0
    progress: float = 1.0
    poll: float = 2.0
    sweep: float = 5.0
    silence: float = 15.0
    settled: float = 5.0
