"""The folders of converted models: their locks, and the removal of those that nothing needs.

Beside each folder is a lock file. A process that uses the folder, or converts into it, holds the
lock with others; its time of change is the last use. A folder is removed with the lock held alone,
so never while any process uses it. It is renamed first: a crash leaves no folder that is half
there under its own name. Knows nothing of the models file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARKER = "prepared.json"  # the last file of a finished conversion
# A start by hand with another models file, or a mistake in it, should not cost a conversion.
GRACE_SECONDS = 3600.0
_WORK, _REMOVED, _LOCK = ".converting-", ".removing-", ".lock-"


class FolderUse:
    """A lock on a folder, shared with other users, until nothing refers to this object."""

    def __init__(self, folder: Path, descriptor: int | None) -> None:
        self._folder = folder
        self._end = None if descriptor is None else weakref.finalize(self, os.close, descriptor)

    def give_up(self) -> None:
        """End the use of a folder that was not made; its lock file is removed."""
        if self._end is not None:
            self._end()
            with contextlib.suppress(OSError):  # another process is making the folder
                _forget(self._folder)


@dataclass(frozen=True, slots=True)
class Marker:
    """What a finished conversion was made of.

    Attributes:
        source: the base model's file or folder.
        adapter: the adapter's folder, if there is one.
        revision: a hash of the result.
    """

    source: str
    adapter: str | None
    revision: str


@dataclass(frozen=True, slots=True)
class RemovedFolder:
    """A folder that was removed, and its size."""

    name: str
    num_bytes: int


def use(folder: Path) -> FolderUse:
    """Keep a folder from being removed. It may be missing, or vanish before the call returns."""
    try:
        return FolderUse(folder, _lock(folder, fcntl.LOCK_SH))
    except OSError:  # a state folder that is read-only: nothing can be removed from it either
        return FolderUse(folder, None)


def read_marker(folder: Path) -> Marker:
    """Read the marker of a finished conversion.

    Raises:
        OSError: there is none.
        ValueError, KeyError, TypeError: it is damaged.
    """
    document = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    adapter = document.get("adapter")
    return Marker(
        str(document["source"]),
        None if adapter is None else str(adapter),
        str(document["revision"]),
    )


def work_folder(target: Path) -> Path:
    """Make the folder in which a conversion is written before it is renamed to ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{_WORK}{target.name}-"))


def remove_unneeded(
    cache_dir: Path, is_needed: Callable[[str, Marker], bool], now: float | None = None
) -> Iterator[RemovedFolder]:
    """Remove folders that nothing needs, and what conversions and removals that died have left.

    Args:
        cache_dir: contains the folders; other files in it are left alone.
        is_needed: whether a folder of this name is to be kept.
        now: the time since the epoch in seconds.

    Yields:
        Each folder after its removal.
    """
    latest = (time.time() if now is None else now) - GRACE_SECONDS
    for path in sorted(cache_dir.iterdir()) if cache_dir.is_dir() else ():
        with contextlib.suppress(OSError):  # in use, or another process is removing it
            if path.name.startswith(_REMOVED):
                yield _delete(path, path.name.removeprefix(_REMOVED).rpartition("-")[0])
            elif path.name.startswith(_WORK):
                target = path.name.removeprefix(_WORK).rpartition("-")[0]
                # Versions without locks did not name the target.
                if target or path.stat().st_mtime < latest:
                    yield _remove(path, cache_dir / (target or path.name))
            elif path.name.startswith(_LOCK):
                if path.stat().st_mtime < latest:
                    _forget(cache_dir / path.name.removeprefix(_LOCK))
            elif (
                (marker := _marker(path)) is not None
                and _last_use(path) < latest
                and not is_needed(path.name, marker)
            ):
                yield _remove(path, path)


def _marker(path: Path) -> Marker | None:
    try:
        return read_marker(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _last_use(folder: Path) -> float:
    lock = _lock_file(folder)
    return (lock if lock.exists() else folder / MARKER).stat().st_mtime


def _remove(path: Path, target: Path) -> RemovedFolder:
    """Remove a folder, if no process holds the lock of the folder ``target``.

    Raises:
        BlockingIOError: a process does.
    """
    with _alone(target):
        doomed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_REMOVED}{path.name}-"))
        path.rename(doomed)  # replaces the empty folder
    return _delete(doomed, path.name)


def _forget(target: Path) -> None:
    """Remove the lock file of a folder that does not exist."""
    if not target.exists():
        with _alone(target):
            pass


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a folder's lock alone; the lock file is removed with the folder."""
    descriptor = _lock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
        if not target.exists():
            _lock_file(target).unlink()
    finally:
        os.close(descriptor)


def _delete(doomed: Path, name: str) -> RemovedFolder:
    num_bytes = sum(file.stat().st_size for file in doomed.rglob("*") if file.is_file())
    shutil.rmtree(doomed, ignore_errors=True)
    return RemovedFolder(name, num_bytes)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{_LOCK}{folder.name}")


def _lock(folder: Path, kind: int) -> int:
    """Lock a folder's lock file, which is not the one that a removal has just deleted.

    Raises:
        BlockingIOError: ``kind`` does not wait, and another process holds the lock.
        OSError: the file cannot be made.
    """
    path = _lock_file(folder)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            if _is_at(path, descriptor):
                if not kind & fcntl.LOCK_EX:
                    os.utime(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
