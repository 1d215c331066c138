"""Returns the jobs of a worker of this machine to the queue as soon as it has died.

Each worker writes its id into the state folder, in a file named after its process. A program that
saw that process end (a sibling worker, the supervisor of ``up``, or the next start) can then expire
its leases by the whole id: a process number or a host name alone may belong to another worker by
then. The job counts as lost, as it does after a lease that ran out.
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
    """Record that this process is a worker, before it claims anything.

    If the state folder cannot be written, the jobs of a dead worker wait until its leases expire.
    """
    path = _path(home, os.getpid())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_suffix(".new")
        fresh.write_text(worker_id, encoding="utf-8")
        fresh.replace(path)  # atomically: a sibling may read it at any moment


def note_end(home: Path) -> None:
    """Remove the record of this process, which has returned its jobs."""
    with contextlib.suppress(OSError):
        _path(home, os.getpid()).unlink()


def noted_workers(home: Path) -> dict[int, str]:
    """The recorded workers: process → worker id.

    Only those of this process's PID namespace: numbers of another container have no meaning here.
    """
    return {pid: worker_id for pid in _noted_pids(home) if (worker_id := _noted_id(home, pid))}


def recover_worker(
    store: JobStore, home: Path, pid: int, actor: str, expected_id: str | None = None
) -> SweepReport | None:
    """Return the jobs of a worker whose process has ended to the queue.

    Args:
        store: where its jobs are.
        home: its state folder.
        pid: of a process that was seen to end.
        actor: the name that ``job_events`` records.
        expected_id: the worker's id, if the process number may be in use again; another worker
            with that number is left alone.

    Returns:
        The changed jobs; ``None`` if the process was not a worker, or had returned its jobs.

    Raises:
        StorageUnavailable: the database is unavailable; the jobs wait until the leases expire.
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


def recover_all_workers(store: JobStore, home: Path, actor: str) -> None:
    """Do the same for all workers of a state folder whose processes have ended.

    Raises:
        StorageUnavailable: the database is unavailable.
    """
    for pid in list(_noted_pids(home)):
        if not is_alive(pid):
            recover_worker(store, home, pid, actor)


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
    """The namespace in which process numbers are unique; only Linux has more than one."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"
