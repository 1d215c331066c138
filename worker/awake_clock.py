"""A clock that leaves out the time in which this process did not run.

``time.monotonic`` jumps for a process that was stopped, on a machine that slept, and in a thread
that got no processor time (after sleep on some systems it does not even jump). Code that judges
others by elapsed time would take a pause of its own process for their failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class AwakeClock:
    """Counts seconds; between two readings it advances by at most a bounded step.

    It must be read regularly, at intervals shorter than the step.

    Args:
        most_seconds: the longest step.
        clock: the underlying clock.
    """

    def __init__(self, most_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_seconds = most_seconds
        self._clock = clock
        self._read_at = clock()
        self._seconds = 0.0

    def __call__(self) -> float:
        """The seconds counted so far."""
        now = self._clock()
        self._seconds += min(max(0.0, now - self._read_at), self._most_seconds)
        self._read_at = now
        return self._seconds
