"""The time of a start: of the second one, and with --fresh of the first one from a clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Section
from benchmarks.processes import (
    ROOT,
    BenchmarkError,
    Workspace,
    clean_environment,
    free_port,
    running,
)

NUM_STARTS = 3
# The second event is the worker's own: web counts a worker that was killed less than 30 s ago as
# present, which would make the next start seem faster.
READY = ("Textmill is ready", "worker_ready")
SETTLE_SECONDS = 2.0  # so that it ends regularly
FRESH_SECONDS = 1_800.0  # the first start downloads PyTorch
UP = (sys.executable, "-P", "-m", "textmill", "up")


def measure(space: Workspace) -> Section:
    """Start everything on an empty state folder, then again on the same folder."""
    section = Section(
        "startup",
        "from the command to the line 'Textmill is ready', including the worker's own event",
        [
            "`textmill up`: embedded Redis, SQLite, web, one worker with the default model",
            "first: an empty state folder, so that the model is converted; later starts find it",
        ],
    )
    environment = _environment(space.new_home())
    log = space.folder / "up.log"
    is_first = not any(space.models.iterdir())
    taken = _seconds(UP, log, environment)
    if is_first:
        section.add("first start", "s", [taken])
    later = [_seconds(UP, log, environment) for _ in range(NUM_STARTS)]
    section.add("later starts", "s", later, "≤ 10 s")
    return section


def later_starts(space: Workspace, num_starts: int, isa: str) -> list[float]:
    """Seconds of starts of ``up`` with converted models and built kernels."""
    environment = _environment(space.new_home()) | {
        "TEXTMILL_KERNELS": str(space.models / "kernels"),
        "TEXTMILL_KERNELS_ISA": isa,
    }
    log = space.folder / "up.log"
    return [_seconds(UP, log, environment) for _ in range(num_starts + 1)][1:]


def measure_fresh() -> Section:
    """Clone the last commit, `make up` in the clone, then `make up` again."""
    section = Section(
        "startup_fresh",
        "`make up` in a fresh clone, from the command to the line 'Textmill is ready'",
        [
            "a new virtual environment, an empty state folder; packages come from the package index"
            " or from pip's cache",
        ],
    )
    folder = Path(tempfile.mkdtemp(prefix="textmill-bench-clone-"))
    try:
        clone = folder / "textmill"
        git = shutil.which("git") or "git"
        subprocess.run([git, "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = _environment(clone / ".textmill")
        make = (shutil.which("make") or "make", "-C", str(clone), "up")
        section.add("first make up", "s", [_seconds(make, folder / "up.log", environment)])
        section.add(
            "second make up", "s", [_seconds(make, folder / "up.log", environment)], "≤ 10 s"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return section


def _environment(home: Path) -> dict[str, str]:
    """Only the settings home and port; PATH without this environment's Python."""
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != own)
    environment = clean_environment(TEXTMILL_HOME=str(home), TEXTMILL_PORT=str(free_port()))
    environment.pop("VIRTUAL_ENV", None)
    return environment | {"PATH": path}


def _seconds(command: tuple[str, ...], log: Path, environment: dict[str, str]) -> float:
    log.write_text("")
    started = time.perf_counter()
    with running(command, log, environment) as process:
        while not all(word in log.read_text(errors="replace") for word in READY):
            if process.poll() is not None or time.perf_counter() - started > FRESH_SECONDS:
                raise BenchmarkError(f"not ready: {log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.02)
        taken = time.perf_counter() - started
        time.sleep(SETTLE_SECONDS)
    return taken
