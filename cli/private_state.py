"""Keeps the state folder private: it contains prompts, texts and the password of Redis.

Files that this process creates are readable by its user only. Files that an earlier release, a copy
or another umask left readable by others are corrected if they are the product's own and belong to
this user; others are reported and left unchanged.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_FOLDERS = ("logs", "redis", "workers", "models", "kernels", "finetune")
_FILES = ("up.lock", "models.toml", "secret")
_DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")


def keep_private(home: Path, database: Path | None) -> list[str]:
    """Make existing and future files private.

    Args:
        home: the state folder; it may be missing.
        database: the SQLite file; ``None`` on PostgreSQL. Corrected only inside the state folder:
            elsewhere its owner decides on its permissions.

    Returns:
        A sentence for each file that others can read and that could not be corrected.
    """
    os.umask(_OTHERS)
    return [
        problem for path in _ours(home, database) if (problem := _make_private(path)) is not None
    ]


def exposed(home: Path, database: Path | None) -> list[Path]:
    """The files of the state that others can read; changes nothing."""
    return [path for path in _ours(home, database) if _is_exposed(path)]


def _ours(home: Path, database: Path | None) -> Iterator[Path]:
    """The product's own files; the state folder itself only if it contains nothing else."""
    if not home.is_dir():
        return
    files = [home / name for name in _FILES]
    if database is not None and database.parent == home:
        files += [database.with_name(database.name + suffix) for suffix in _DATABASE_SUFFIXES]
    known = {path.name for path in files} | set(_FOLDERS)
    if all(entry.name in known for entry in _entries(home)):
        yield home
    for path in files:
        if path.is_file() and not path.is_symlink():
            yield path
    for name in _FOLDERS:
        folder = home / name
        if not folder.is_dir() or folder.is_symlink():
            continue
        yield folder
        # The contents of a private folder are unreachable; but logs get copied to other places.
        if name in ("logs", "redis"):
            yield from (entry for entry in _entries(folder) if entry.is_file())


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.is_symlink())
    except OSError:
        return []


def _is_exposed(path: Path) -> bool:
    try:
        return bool(path.lstat().st_mode & _OTHERS)
    except OSError:
        return False


def _make_private(path: Path) -> str | None:
    if not _is_exposed(path):
        return None
    try:
        found = path.lstat()
        if found.st_uid == os.geteuid():
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
            return None
        reason = "it belongs to another user"
    except OSError as error:
        reason = error.strerror or "unknown"
    return f"Others can read {path} ({reason}); run chmod go-rwx on it."
