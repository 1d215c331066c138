"""What a worker of this machine held when it died, given back at once.

Each worker writes its id into the state folder, in a file named after its process. A program that
saw that very process end (a sibling worker, the supervisor of ``up``, or the next start) can then
expire its leases by the whole id: a process number or a host's name alone may belong to another
worker by now. The lost job counts as lost, as after a lease that ran out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from textmill.core.jobs.store import JobStore
from textmill.core.jobs.sweeping import SweepReport
from textmill.core.workers import forget, is_alive

FOLDER = "workers"  # in the state folder


def note_birth(home: Path, worker_id: str) -> None:
    """Write down that this process is a worker, before it claims anything.

    A state folder that cannot be written costs the time of a lease, should the worker die.
    """
    path = _path(home, os.getpid())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_suffix(".new")
        fresh.write_text(worker_id, encoding="utf-8")
        fresh.replace(path)  # whole at once: a sibling may read it at any moment


def note_end(home: Path) -> None:
    """Take back what ``note_birth`` wrote: this worker has given its jobs back."""
    with contextlib.suppress(OSError):
        _path(home, os.getpid()).unlink()


def noted_workers(home: Path) -> dict[int, str]:
    """The workers that have noted their birth and not their end: process → worker id.

    Only those of this process's PID namespace: the numbers of another container mean nothing here.
    """
    return {pid: worker_id for pid in _noted_pids(home) if (worker_id := _noted_id(home, pid))}


def bury(
    store: JobStore, home: Path, pid: int, actor: str, expected_id: str | None = None
) -> SweepReport | None:
    """Take back what a worker held whose process has ended.

    Args:
        store: where its jobs are.
        home: its state folder.
        pid: of a process that was seen to end.
        actor: named in ``job_events``.
        expected_id: the worker's id, where the process number may be in use again; another worker
            under that number is left alone.

    Returns:
        What became of its jobs; ``None`` where the process was no worker, or had given everything
        back.

    Raises:
        StorageUnavailable: the database is away; the leases run out.
    """
    worker_id = _noted_id(home, pid)
    if worker_id is None or expected_id not in {None, worker_id}:
        return None
    report = None
    if worker_id:
        report = store.sweep(actor, store.held_leases(worker_id))
        forget(store.engine, worker_id)
    with contextlib.suppress(OSError):
        _path(home, pid).unlink()
    return report


def bury_all(store: JobStore, home: Path, actor: str) -> None:
    """Take back what the workers of this state folder held whose processes are gone.

    Raises:
        StorageUnavailable: the database is away.
    """
    for pid in list(_noted_pids(home)):
        if not is_alive(pid):
            bury(store, home, pid, actor)


def _noted_pids(home: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for path in (home / FOLDER).iterdir():
            pid, _, namespace = path.name.partition(".")
            if pid.isdecimal() and namespace == _pid_namespace():
                yield int(pid)


def _noted_id(home: Path, pid: int) -> str | None:
    try:
        return _path(home, pid).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _path(home: Path, pid: int) -> Path:
    return home / FOLDER / f"{pid}.{_pid_namespace()}"


def _pid_namespace() -> str:
    """Identifies the processes among which a process number is unique; Linux alone has several."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"
