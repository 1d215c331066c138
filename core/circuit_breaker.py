"""A circuit breaker: after a failure nobody waits for the same failure again for a while.

A frozen server costs its caller a whole time-out. Shared by all threads of a process, this makes
one of them pay it and lets the rest go on without the server. Knows nothing of Redis.

Source: M. Nygard, "Release It!", 2007. Deviation: one failure opens it, since a fallback stands
ready and costs little.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PAUSE_SECONDS = 2.0  # as long as the time-out it saves: at most half of one thread's time is lost


class CircuitBreaker:
    """Open after a failure; then one caller a pause tries, and its success closes it."""

    def __init__(
        self,
        pause_seconds: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start closed: everybody may call."""
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._is_open = False
        self._try_at = 0.0

    def may_call(self) -> bool:
        """Whether to call now; while it is open, true for one caller a pause."""
        with self._lock:
            if not self._is_open:
                return True
            if self._clock() < self._try_at:
                return False
            self._try_at = self._clock() + self._pause_seconds
            return True

    def note_success(self) -> None:
        """The server answered."""
        with self._lock:
            self._is_open = False

    def note_failure(self) -> None:
        """The server did not answer; the pause counts from now."""
        with self._lock:
            self._is_open = True
            self._try_at = self._clock() + self._pause_seconds
