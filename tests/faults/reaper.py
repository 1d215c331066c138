"""Cleans up after a killed harness: ends its processes and removes its disks and folders.

The harness starts this program beside itself; it waits for the end of its input. The harness writes
``+FOLDER`` for every folder that it creates, and ``-FOLDER`` after it has cleaned up itself. A
process belongs to the folder that its command line or its environment names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path


class Reaper:
    """The harness's side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, folder: Path) -> None:
        """Clean up this folder if this process dies."""
        self._tell(f"+{folder}")

    def forget(self, folder: Path) -> None:
        """The folder was removed and needs no cleaning up."""
        self._tell(f"-{folder}")

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__],
                    stdin=subprocess.PIPE,
                    start_new_session=True,  # signals to the harness's group must not reach it
                )
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()


REAPER = Reaper()


def main() -> None:
    """Wait for the end of the input, then clean up what is left."""
    folders: set[str] = set()
    for line in sys.stdin:
        folder = line[1:].rstrip("\n")
        (folders.add if line.startswith("+") else folders.discard)(folder)
    for folder in folders:
        for pid in _processes_of(folder):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for disk in ("home", "postgres"):
            if os.path.ismount(f"{folder}/{disk}"):
                subprocess.run(["umount", "--lazy", f"{folder}/{disk}"], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if folder.encode() in told and pid != os.getpid():
                found.append(pid)
    return found


if __name__ == "__main__":
    main()
