"""How long a command retries while its server does not answer: a restart of web takes seconds.

Every answer starts the period again. The pause between two attempts grows, or is the one that the
server asked for. Knows nothing of jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from textmill.cli.server_errors import Refused, Unreachable

PATIENCE_SECONDS = 30.0  # `up` stops and starts everything within this time
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0
_GROWTH = 1.5
_NUM_SILENT = 2  # failures in a row before the user is notified; one broken stream is normal
Result = TypeVar("Result")


class Patience:
    """Counts the time since the server last answered.

    Args:
        seconds: how long to retry without an answer; 0 gives up at the first failure.
        notify: gets a sentence when the server has failed to answer more than once.
        clock: monotonic, in seconds.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        seconds: float = PATIENCE_SECONDS,
        *,
        notify: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._seconds = seconds
        self._notify = notify
        self._clock = clock
        self._sleep = sleep
        self.renew()

    def renew(self) -> None:
        """Start the period again, because the server answered."""
        self._num_failures = 0
        self._until: float | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def pause(self, failure: Unreachable | Refused) -> None:
        """Wait before the next attempt.

        Raises:
            Unreachable, Refused: the failure, if it is permanent or the time is up.
        """
        now = self._clock()
        self._until = now + self._seconds if self._until is None else self._until
        if not is_temporary(failure) or now >= self._until:
            raise failure
        self._num_failures += 1
        if self._num_failures == _NUM_SILENT:
            self._notify(f"{str(failure).splitlines()[0]} Trying again for {self._seconds:g} s.")
        asked = failure.retry_after_seconds if isinstance(failure, Refused) else 0.0
        self._sleep(min(max(self._pause_seconds, asked), self._until - now))
        self._pause_seconds = min(self._pause_seconds * _GROWTH, _LONGEST_PAUSE_SECONDS)

    def call(self, attempt: Callable[[], Result]) -> Result:
        """Repeat an attempt until it succeeds, and return its result.

        Raises:
            Unreachable, Refused: the last failure, if it is permanent or the time is up.
        """
        while True:
            try:
                result = attempt()
            except (Unreachable, Refused) as failure:
                self.pause(failure)
            else:
                self.renew()
                return result


def is_temporary(failure: Unreachable | Refused) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(failure, Unreachable) or failure.status in {429, 502, 503, 504}
