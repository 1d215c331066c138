"""Which jobs may run beside which, after workers were lost with jobs in hand.

A lost job is a suspect: it may be the one that killed its worker. Most were only near it, or the
worker was killed from outside. The rule (docs/decisions/0014) finds the guilty one at its third
loss, fails no innocent one, and bounds for how long slots are left empty:

- a job that was never lost runs beside anything;
- of those that were lost once, at most the square root of the slots start within a few seconds;
- one that was lost twice starts alone: beside it run only jobs that were never lost and have run
  for a few seconds, and nothing starts until it has run as long.

Knows nothing of databases; the store picks the job that this admits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ANY_LOSSES = 1_000_000


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that runs: how often it was lost before, and for how long it has run now."""

    lost_count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Admission:
    """What may start beside what runs.

    Attributes:
        most_losses: the job may have been lost so often; -1: nothing may start.
        waits_for_first: when the first in the line was lost more often, nothing that is behind it
            starts either: it is to get its turn, within a few seconds.
    """

    most_losses: int
    waits_for_first: bool = False


def admission(running: Sequence[RunningJob], num_slots: int, settled_seconds: float) -> Admission:
    """What may start beside the jobs that run."""
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

    A group of g out of n slots has all slots in use after n/g pauses, and when the guilty one is in
    it, g jobs start alone afterwards: the sum is least where both are equal.
    """
    return math.isqrt(max(1, num_slots) - 1) + 1  # the square root, rounded up
