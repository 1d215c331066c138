"""One process that the supervisor runs: starts it, relays its output, waits, ends it and its group.

Knows nothing of what the process does, nor when to restart it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from textmill.cli.console import Console, LogFile
from textmill.cli.reaper import Reaper

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_LINE_BYTES = 64 * 1024  # a longer line is split
_LAST_OUTPUT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to run.

    Attributes:
        name: shown before each of its lines, and the name of its log file.
        command: program and arguments.
        environment: the whole environment of the process.
        death_signal: the signal from the kernel if the supervisor is killed: ``TERM`` or ``KILL``.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    death_signal: str = "KILL"


class Child:
    """A running process in a process group of its own.

    ``start`` is synchronous, so that no cancellation can come between the start of the process and
    the assignment of ``_process``.

    Args:
        spec: what to run.
        console: gets its lines, and so does a file in ``logs``.
        reaper: ends its group if this process dies.
    """

    def __init__(self, spec: ChildSpec, console: Console, logs: Path, reaper: Reaper) -> None:
        self.spec = spec
        self.last_line = ""
        self._console = console
        self._reaper = reaper
        self._log = LogFile(logs / f"{spec.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._pump: threading.Thread | None = None

    def start(self) -> None:
        """Start the process, for the first time or again after it ended."""
        launcher = (sys.executable, "-I", "-S", str(_DIE_WITH_PARENT))
        bound = (*launcher, self.spec.death_signal, str(os.getpid()))
        self._process = None  # if the start fails, there is no process
        self._ended = asyncio.Event()
        self.last_line = ""
        self._process = process = subprocess.Popen(  # noqa: S603 - the command is the supervisor's own
            [*bound, *self.spec.command],
            env=dict(self.spec.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # only the supervisor gets Ctrl-C, and ends all in order
        )
        self._reaper.watch(process.pid, self.spec.death_signal)
        pipe = cast("IO[bytes]", process.stdout)
        self._pump = threading.Thread(target=self._relay, args=(pipe,), daemon=True)
        self._pump.start()
        waiter = (process, asyncio.get_running_loop(), self._ended)
        threading.Thread(target=_announce_end, args=waiter, daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and not self._ended.is_set()

    @property
    def pid(self) -> int | None:
        """The process id of the last start."""
        return self._process.pid if self._process else None

    async def wait(self) -> int:
        """Wait until the process ends, and kill the rest of its group.

        Returns:
            The exit status, negative for a signal.
        """
        if self._process is None or self._pump is None:
            raise RuntimeError(f"{self.spec.name} was never started")
        await self._ended.wait()
        self._kill_group()  # a remaining grandchild would keep the port or the memory
        self._reaper.forget(self._process.pid)
        await asyncio.to_thread(self._pump.join, _LAST_OUTPUT_SECONDS)
        return int(self._process.returncode)

    def terminate(self) -> None:
        """Ask the process to end."""
        if self.is_running and self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process and its group at once."""
        if self.is_running:
            self._kill_group()

    def close(self) -> None:
        """Close the log file."""
        self._log.close()

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _relay(self, pipe: IO[bytes]) -> None:
        with pipe:
            while piece := pipe.readline(_LINE_BYTES):
                line = piece.decode(errors="replace").rstrip()
                if line:
                    self.last_line = line
                self._log.append(line)
                self._console.relay(self.spec.name, line)


def _announce_end(
    process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, ended: asyncio.Event
) -> None:
    process.wait()
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(ended.set)
