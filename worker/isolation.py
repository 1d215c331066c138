"""Decides which jobs may run beside each other after workers died with running jobs.

A lost job is a suspect: it may have killed its worker. Most lost jobs only ran beside it, or the
worker was killed from outside. The rule (docs/decisions/0014) identifies the cause at its third
loss, fails no other job, and bounds how long slots stay empty:

- a job that was never lost runs beside any other;
- of those that were lost once, at most the square root of the slots start within a few seconds;
- one that was lost twice starts alone: beside it run only jobs that were never lost and have run
  for a few seconds, and nothing starts until it has run as long.

Knows nothing of databases; the store picks a job that this admits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ANY_LOSSES = 1_000_000


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A running job: how often it was lost before, and how long it has run."""

    lost_count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Admission:
    """Which jobs may start beside the running ones.

    Attributes:
        most_losses: the most losses that a job may have; -1: none may start.
        waits_for_first: whether no job may start if the first in the queue has more losses, so
            that the first gets its turn within a few seconds.
    """

    most_losses: int
    waits_for_first: bool = False


def admission(running: Sequence[RunningJob], num_slots: int, settled_seconds: float) -> Admission:
    """Which jobs may start beside the running ones."""
    unsettled = [job for job in running if job.seconds < settled_seconds]
    if any(job.lost_count > 1 for job in unsettled):
        return Admission(-1)
    suspects = [job for job in running if job.lost_count]
    if not suspects:
        return Admission(ANY_LOSSES) if not unsettled else Admission(1, waits_for_first=True)
    if any(job.lost_count > 1 for job in suspects):
        return Admission(0)  # another suspect could cost this one its third loss
    num_starting = sum(job.lost_count == 1 for job in unsettled)
    return Admission(1 if num_starting < group_size(num_slots) else 0)


def group_size(num_slots: int) -> int:
    """How many jobs that were lost once may start together.

    With groups of g, n slots are in use after n/g pauses; if the cause is in a group, its g jobs
    start alone afterwards. The sum is smallest where both are equal.
    """
    return math.isqrt(max(1, num_slots) - 1) + 1  # the square root, rounded up
