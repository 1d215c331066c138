"""Run a command that dies with its parent: ``die_with_parent.py SIGNAL PARENT_PID COMMAND…``.

Linux sends SIGNAL to the process when its parent dies, even by SIGKILL; the request survives
``exec``. On other systems the command just runs. As a separate program this keeps the supervisor,
which has threads, from running Python between fork and exec.

Standard library only: it is started with ``-I -S`` to cost some 10 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Bind this process to its parent, then become the command."""
    death_signal = signal.Signals[f"SIG{arguments[0]}"]
    bind_to_parent(death_signal)
    if os.getppid() != int(arguments[1]):  # the parent died before the request was registered
        sys.exit(0)
    os.execvp(arguments[2], arguments[2:])  # noqa: S606 - becoming the command is the purpose


def bind_to_parent(death_signal: signal.Signals) -> None:
    """Ask the kernel to send ``death_signal`` to this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
