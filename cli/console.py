"""The output of ``up``: its own lines, those of its children, and the files in ``logs/``.

A separate thread writes, so that a terminal that nobody reads never blocks the supervisor. Lines
beyond a bound are then dropped from the terminal; the files get all of them.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path

from textmill.cli.terminal import printable

_MAX_WAITING_LINES = 10_000
_LOG_FILE_BYTES = 10 * 1024 * 1024
_LOG_FILE_COUNT = 3


class Console:
    """Prints lines to a file descriptor, in order."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    def show(self, line: str) -> None:
        """Print a line that must not be dropped, such as the one that announces readiness."""
        self._lines.put(line)

    def note(self, line: str) -> None:
        """Print a line from the supervisor itself."""
        self.show(f"[up] {line}")

    def relay(self, name: str, line: str) -> None:
        """Print a line that the child ``name`` wrote."""
        if self._lines.qsize() < _MAX_WAITING_LINES:
            self._lines.put(f"[{name}] {printable(line)}")

    def close(self, timeout_seconds: float = 1.0) -> None:
        """Write what waits; give up after the time-out when nobody reads."""
        self._lines.put(None)
        self._thread.join(timeout_seconds)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            data = f"{line}\n".encode(errors="replace")
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:  # the terminal went away; the log files go on
                continue


class LogFile(RotatingFileHandler):
    """The lines of one child, kept in ``logs/`` and rotated at 10 MiB."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=_LOG_FILE_BYTES, backupCount=_LOG_FILE_COUNT, errors="replace"
        )

    def append(self, line: str) -> None:
        """Add one line."""
        self.handle(logging.makeLogRecord({"msg": "%s", "args": (line,)}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging names it
        """Let a full disk cost log lines, not the service."""
