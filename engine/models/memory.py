"""The memory that a worker may use for keys and values. Needs no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

SHARE_OF_FREE = 0.5  # the rest is for the web process, the database and other programs
MIN_CACHE_BYTES = 64 << 20


def return_unused() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc).

    Loading a model frees hundreds of tensors and a parsed tokenizer, which leave gaps of 30 MB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def cache_bytes(asked: int) -> int:
    """The requested limit; 0 means half of the memory that is free now."""
    return asked or max(MIN_CACHE_BYTES, int(available_bytes() * SHARE_OF_FREE))


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Available memory in bytes: the system's, or less if a container's limit is lower."""
    bounds = [_system(proc)]
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        bounds.append(max(0, limit - used))
    return min(bounds)


def _system(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    found = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(found.split()[1]) * 1024


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
