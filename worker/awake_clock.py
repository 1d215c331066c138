"""A clock that leaves out the time in which this process stood still.

A process that was stopped, a machine that slept, a thread that got no processor: to all of them
``time.monotonic`` jumps (on some systems it does not even do that). Whoever judges others by the
time that passed would take a pause of its own for a failure of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class AwakeClock:
    """Counts seconds; between two readings it goes on by a bounded step at most.

    To be read regularly, and more often than the step is long.
    """

    def __init__(self, most_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``most_seconds`` is the longest step between two readings."""
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
