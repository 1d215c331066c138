"""A circuit breaker: for a while after a failure, calls fail at once instead of waiting.

A frozen server costs its caller a whole time-out. With a breaker that all threads of a process
share, one thread pays for it and the others go on without the server. Knows nothing of Redis.

Source: M. Nygard, "Release It!", 2007. Deviation: one failure opens it, as the fallback is cheap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PAUSE_SECONDS = 2.0  # as long as the time-out: at most half of one thread's time is lost


class CircuitBreaker:
    """Opens after a failure; then one call per pause is let through, and a success closes it."""

    def __init__(
        self,
        pause_seconds: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._is_open = False
        self._try_at = 0.0

    def may_call(self) -> bool:
        """Whether to call now; while the breaker is open, true once per pause."""
        with self._lock:
            if not self._is_open:
                return True
            if self._clock() < self._try_at:
                return False
            self._try_at = self._clock() + self._pause_seconds
            return True

    def note_success(self) -> None:
        """Record that the server answered."""
        with self._lock:
            self._is_open = False

    def note_failure(self) -> None:
        """Record that the server did not answer; the pause starts now."""
        with self._lock:
            self._is_open = True
            self._try_at = self._clock() + self._pause_seconds
