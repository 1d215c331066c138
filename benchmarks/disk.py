"""The time of one durable write on this disk, a lower bound of every commit's."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.client import milliseconds

NUM_WRITES = 50
PAGE_BYTES = 4096  # the least that SQLite's and PostgreSQL's logs write


def sync_ms(folder: Path) -> list[float]:
    """Milliseconds of appending a page to a file and syncing it, for each repetition."""
    path = folder / "sync-probe"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(NUM_WRITES):
            started = time.perf_counter()
            file.write(b"\0" * PAGE_BYTES)
            os.fsync(file.fileno())
            taken.append(milliseconds(started))
    path.unlink()
    return taken
