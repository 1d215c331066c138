"""A child process that answers lines, and is killed and restarted if it takes too long.

For libraries and templates that may hang, run out of memory or crash on what others wrote.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast


class LineProcess:
    """Runs a program that reads and writes one JSON value a line; one request at a time.

    Args:
        program: a Python file, which imports nothing of the product.
        first: what it gets when it starts, before any request; it answers that too.
        start_seconds: how long that may take.
        seconds: how long a request may take.
    """

    def __init__(
        self, program: str, first: object, *, start_seconds: float, seconds: float
    ) -> None:
        self._program = program
        self._first = json.dumps(first)
        self._start_seconds = start_seconds
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> dict[str, Any] | None:
        """Start the process; returns its first answer, ``None`` if it crashed or took too long."""
        with self._lock:
            return self._running()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a request and return its answer; ``None`` if the process crashed or was killed.

        Raises:
            TimeoutError: another request takes too long.
        """
        if not self._lock.acquire(timeout=self._seconds):
            raise TimeoutError
        try:
            failed = self._running()
            if failed is None or "error" in failed:
                return failed
            return self._exchange(json.dumps(request), self._seconds)
        finally:
            self._lock.release()

    def stop(self) -> None:
        """Kill the process; the next request starts it again."""
        with self._lock:
            self._end()

    def _running(self) -> dict[str, Any] | None:
        if self._child is not None and self._child.poll() is None:
            return {}
        self._end()
        limits = (str(int(self._seconds) + 1), str(int(self._start_seconds) + 1))
        self._child = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", self._program, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            cwd=Path(self._program).parent.parent,
        )
        return self._exchange(self._first, self._start_seconds)

    def _exchange(self, line: str, seconds: float) -> dict[str, Any] | None:
        child = cast("subprocess.Popen[str]", self._child)
        timer = threading.Timer(seconds, child.kill)
        timer.daemon = True
        timer.start()
        try:
            ask, answer = cast("IO[str]", child.stdin), cast("IO[str]", child.stdout)
            ask.write(line + "\n")
            ask.flush()
            reply = answer.readline()
        except OSError:
            reply = ""
        finally:
            timer.cancel()
        if reply.endswith("\n"):
            return cast("dict[str, Any]", json.loads(reply))
        self._end()
        return None

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            child.wait()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._end()
