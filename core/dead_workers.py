"""What a worker of this machine held when it died, given back at once.

Each worker writes its id into the state folder, under the number of its process. Who saw that very
process end (the supervisor of ``up``, or the next start) can then expire its leases by the whole
id: a process number or a host's name alone may belong to another worker by now. The lost job counts
as lost, as after a lease that ran out.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from core.jobs import JobStore
from core.sweeping import SweepReport
from core.workers import forget, is_alive

FOLDER = "workers"  # in the state folder


def note_birth(home: Path, worker_id: str) -> None:
    """Write down that this process is a worker, before it claims anything.

    A state folder that cannot be written costs the time of a lease, should the worker die.
    """
    path = _path(home, os.getpid())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(worker_id, encoding="utf-8")


def note_end(home: Path) -> None:
    """Take back what ``note_birth`` wrote: this worker has given its jobs back."""
    with contextlib.suppress(OSError):
        _path(home, os.getpid()).unlink()


def bury(store: JobStore, home: Path, pid: int, actor: str) -> SweepReport | None:
    """Take back what a worker held whose process has ended.

    Args:
        store: where its jobs are.
        home: its state folder.
        pid: of a process that was seen to end, and whose number is not used again yet.
        actor: named in ``job_events``.

    Returns:
        What became of its jobs; ``None`` where the process was no worker, or had given everything
        back.

    Raises:
        StorageUnavailable: the database is away; the leases run out.
    """
    path = _path(home, pid)
    try:
        worker_id = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    report = None
    if worker_id:
        report = store.sweep(actor, store.held_leases(worker_id))
        forget(store.engine, worker_id)
    with contextlib.suppress(OSError):
        path.unlink()
    return report


def bury_all(store: JobStore, home: Path, actor: str) -> None:
    """Take back what the workers of this state folder held whose processes are gone.

    Raises:
        StorageUnavailable: the database is away.
    """
    with contextlib.suppress(OSError):
        for path in list((home / FOLDER).iterdir()):
            if path.name.isdigit() and not is_alive(int(path.name)):
                bury(store, home, int(path.name), actor)


def _path(home: Path, pid: int) -> Path:
    return home / FOLDER / str(pid)
