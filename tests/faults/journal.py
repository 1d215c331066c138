"""The responses that clients received: a file beside the database, synced line by line.

A response in this file was a promise. If the machine loses power a moment later, a commit that the
database lost and this file contains is a broken promise.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One response.

    Attributes:
        kind: ``accepted``, ``canceled`` (202), ``refused`` (a cancel's 409), ``deleted`` (204) or
            ``cancel-unknown`` and ``delete-unknown`` (no response: done or not).
        job_id: the job.
        body: the body's name, if accepted.
        key: the idempotency key, if accepted.
        at: seconds since 1970.
    """

    kind: str
    job_id: str
    body: str = ""
    key: str = ""
    at: float = 0.0


class Journal:
    """Appends from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, job_id: str, body: str = "", key: str = "") -> None:
        """Append a line and return when it is on the disk."""
        line = json.dumps(asdict(Entry(kind, job_id, body, key, time.time()))) + "\n"
        with self._lock:
            os.write(self._file, line.encode())
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> Iterator[Entry]:
    """The entries of a file, without a last line that was cut off."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield Entry(**json.loads(line))
