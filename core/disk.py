"""The room on the disk of a database file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from textmill.core.settings import Settings

MIB = 1 << 20


def disk_check(settings: Settings) -> Callable[[], bool]:
    """A function that says whether the disk of the SQLite file is nearly full."""
    return lambda: is_nearly_full(settings.sqlite_file, settings.min_free_mib)


def is_nearly_full(file: Path | None, min_free_mib: int) -> bool:
    """Whether the disk of a file has too little room; false if there is no file, or on errors."""
    if file is None:
        return False
    try:
        return shutil.disk_usage(file.parent).free < min_free_mib * MIB
    except OSError:
        return False
