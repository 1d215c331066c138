"""An exclusive lock between processes, held on a file."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def file_lock(path: Path, *, is_blocking: bool = True) -> Iterator[IO[str]]:
    """Hold the lock inside the ``with`` block; the kernel releases it when the process ends.

    Args:
        path: the lock file, which is created if it is missing and never removed.
        is_blocking: whether to wait while another process holds the lock.

    Yields:
        The lock file, open for appending.

    Raises:
        BlockingIOError: another process holds the lock, and ``is_blocking`` is false.
        OSError: the file cannot be opened.
    """
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if is_blocking else fcntl.LOCK_NB))
        yield file
