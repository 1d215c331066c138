"""Handles SIGTERM and SIGINT from the start of the process until Celery does.

While models load there are no jobs to return, and the process exits at once. Once jobs may run, a
signal is remembered and passed on as soon as Celery's own handlers are installed; without that,
Python would end the process while it holds leases.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from types import FrameType

WAIT_SECONDS = 0.5  # after which a signal is noticed that came just before a wait
HAND_OVER_SECONDS = 0.05  # between two checks for another handler; only after a signal came


class StopSignal:
    """Remembers that this process was asked to stop.

    It installs its handlers when it is created, which must happen on the main thread.
    """

    def __init__(self) -> None:
        # A handler may interrupt a wait, or itself: a service manager and a supervisor both send
        # SIGTERM. This queue allows that; the lock of an Event would not.
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._holds_jobs = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def hold_jobs(self) -> None:
        """From now on a signal starts a drain."""
        self._holds_jobs = True

    def wait(self) -> None:
        """Wait for a signal; not together with ``hand_over``.

        Python runs a handler between two instructions of the main thread. A signal that comes just
        before the wait begins does not end it, so that the wait must be repeated.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                self._signals.get(timeout=WAIT_SECONDS)
                return

    def hand_over(self) -> None:
        """Pass a signal on to the handlers that replace these."""
        threading.Thread(target=self._pass_on, name="stop-signal", daemon=True).start()

    def _pass_on(self) -> None:
        self.wait()
        while signal.getsignal(signal.SIGTERM) == self._on_signal:
            threading.Event().wait(HAND_OVER_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.put(number)
        if not self._holds_jobs:
            raise SystemExit(0)
