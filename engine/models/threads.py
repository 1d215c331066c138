"""The number of threads that compute a step."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PROCESSORS = Path("/sys/devices/system/cpu")


def num_threads() -> int:
    """``OMP_NUM_THREADS`` if it is set, as for PyTorch; otherwise the cores this process may use.

    Two threads of one core share its multipliers and gain nothing.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return os.cpu_count() or 1
    return num_cores(os.sched_getaffinity(0))


def num_cores(processors: Iterable[int], folder: Path = _PROCESSORS) -> int:
    """The number of cores to which logical processors belong, by the system's files."""
    return len({_siblings(folder, processor) for processor in processors})


def _siblings(folder: Path, processor: int) -> str:
    """The processors of the same core; the processor itself if the system does not say."""
    try:
        path = folder / f"cpu{processor}" / "topology" / "thread_siblings_list"
        return path.read_text(encoding="ascii").strip() or str(processor)
    except OSError:
        return str(processor)
