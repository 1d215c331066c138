"""SIGTERM and SIGINT from the first moment on, whoever listens to them at the time.

While models load there is nothing to hand back, and the process simply leaves. Once jobs may run, a
signal is remembered and handed to Celery as soon as Celery's own handlers stand: until then Python
would end the process with its leases held.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

HAND_OVER_SECONDS = 0.05  # between two looks at whose handler stands; only after a signal came


class Termination:
    """Remembers that somebody asked this process to end."""

    def __init__(self) -> None:
        """Install the handlers; to be called on the main thread."""
        self.asked = threading.Event()
        self._holds_jobs = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def hold_jobs(self) -> None:
        """From here on a signal means a drain."""
        self._holds_jobs = True

    def hand_over(self) -> None:
        """Pass a signal on to whoever takes the handler over from here."""
        threading.Thread(target=self._pass_on, name="termination", daemon=True).start()

    def _pass_on(self) -> None:
        self.asked.wait()
        while signal.getsignal(signal.SIGTERM) == self._on_signal:
            threading.Event().wait(HAND_OVER_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked.set()
        if not self._holds_jobs:
            raise SystemExit(0)
