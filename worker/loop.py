"""A thread that calls a function at regular intervals, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from textmill.core.errors import StorageUnavailable

RETRY_SECONDS = 1.0  # after a call without the database: leases run out meanwhile
log = structlog.get_logger(__name__)


class Loop:
    """A thread that calls a function at regular intervals until it is closed.

    Args:
        name: of the thread, and in the log.
        every_seconds: the pause between two calls.
        call: the function; it must not take much longer than ``every_seconds``.
    """

    def __init__(self, name: str, every_seconds: float, call: Callable[[], None]) -> None:
        self._every = every_seconds
        self._call = call
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._name = name
        self._is_away = False  # whether the database was unavailable at the last call

    def start(self) -> None:
        """Start the thread, which makes its first call at once."""
        self._thread.start()

    def wake(self) -> None:
        """Make the next call now."""
        self._woken.set()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Stop after the current call."""
        self._closing.set()
        self._woken.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            self._woken.clear()
            if self._closing.is_set():  # checked after the clear, or a close would be missed
                return
            pause = self._every
            try:
                self._call()
                self._note_database(None)
            except StorageUnavailable as error:
                self._note_database(error)
                pause = min(pause, RETRY_SECONDS)
            except Exception:  # the task edge: without this loop the worker would lose its leases
                log.exception("loop_failed", loop=self._name)
            self._woken.wait(pause)

    def _note_database(self, error: StorageUnavailable | None) -> None:
        """Log once when the database becomes unavailable, and once when it is back."""
        if error is not None and not self._is_away:
            log.warning("database_away", loop=self._name, reason=str(error))
        elif error is None and self._is_away:
            log.info("database_back", loop=self._name)
        self._is_away = error is not None
