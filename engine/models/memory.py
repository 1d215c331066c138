"""How much memory a worker may give to keys and values. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

SHARE_OF_FREE = 0.5  # the rest is for the web side, the database and what else runs here
MIN_CACHE_BYTES = 64 << 20


def cache_bytes(asked: int) -> int:
    """The bound that was asked for; 0 asks for half of what is free now."""
    return asked or max(MIN_CACHE_BYTES, int(available_bytes() * SHARE_OF_FREE))


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can still be had: what the system has, or less where a container is bounded."""
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
