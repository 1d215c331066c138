"""Ends the children of a supervisor that was killed, and their children: ``reaper.py SECONDS``.

The kernel's death signal (``die_with_parent``) reaches the children themselves. It does not reach
their children, a program that changed its user, or a system other than Linux, and nothing limits
the drain of a worker that receives it. So the supervisor runs this program beside its children and
names each process group on its standard input, which ends when the supervisor ends, even by
SIGKILL.

Standard library only: the program is started with ``-I -S``, and takes 6 MiB.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import IO, cast

_LOOK_SECONDS = 0.05


class Reaper:
    """The supervisor's side. Without the program the supervisor works as before.

    Args:
        drain_seconds: how long groups whose death signal is ``TERM`` may go on after the
            supervisor's end.
    """

    def __init__(self, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program."""
        with contextlib.suppress(OSError):  # no memory or no process left
            self._process = subprocess.Popen(  # noqa: S603 - this file
                [sys.executable, "-I", "-S", __file__, f"{self._drain_seconds:g}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # who reads the supervisor's must see it end
                start_new_session=True,  # signals for the supervisor's group do not end it
            )

    def watch(self, group: int, death_signal: str) -> None:
        """End a process group if this process dies.

        Args:
            group: its number, which is its first process's.
            death_signal: ``TERM`` or ``KILL``, as in ``ChildSpec``.
        """
        self._tell(f"{group} {death_signal}")

    def forget(self, group: int) -> None:
        """The group has ended."""
        self._tell(f"{group} ended")

    def close(self) -> None:
        """End the program; all groups have ended."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                cast("IO[bytes]", self._process.stdin).close()
            self._process.wait()

    def _tell(self, line: str) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError, ValueError):  # it was killed, or closed
                pipe = cast("IO[bytes]", self._process.stdin)
                pipe.write(line.encode() + b"\n")
                pipe.flush()


def main(drain_seconds: float) -> None:
    """Read the supervisor's groups until it ends, then end what is left of them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # such a signal asks the supervisor to end, not this
    groups = _read_groups(sys.stdin)
    draining = {group for group, death_signal in groups.items() if death_signal == "TERM"}
    _signal_groups(groups.keys() - draining, signal.SIGKILL)
    if sys.platform != "linux":  # there it was the kernel that asked them, at once
        _signal_groups(draining, signal.SIGTERM)
    deadline = time.monotonic() + drain_seconds
    while (draining := _running(draining)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)  # groups have no descriptor that could be awaited
    _signal_groups(draining, signal.SIGKILL)


def _read_groups(lines: Iterable[str]) -> Mapping[int, str]:
    """The groups that still ran when the input ended, with their death signals."""
    groups: dict[int, str] = {}
    for line in lines:
        group, _, state = line.rstrip("\n").partition(" ")
        if state == "ended":
            groups.pop(int(group), None)
        else:
            groups[int(group)] = state
    return groups


def _running(groups: Iterable[int]) -> set[int]:
    """The groups that have a process, zombies included; a group's number is free without one."""
    found = set()
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, 0)
            found.add(group)
    return found


def _signal_groups(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


if __name__ == "__main__":
    main(float(sys.argv[1]))
