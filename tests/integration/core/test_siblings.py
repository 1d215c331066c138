"""A worker detects the death of another worker of its machine and returns its jobs immediately."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.core.conftest import Bench
from textmill.core.dead_workers import note_birth, noted_workers
from textmill.core.errors import StorageUnavailable
from textmill.core.workers import WorkerState, beat, seen_workers
from textmill.worker import siblings
from textmill.worker.siblings import SiblingWatch

SLEEPER = (
    "import sys, time; from pathlib import Path; from textmill.core.dead_workers import note_birth;"
    "note_birth(Path(sys.argv[1]), sys.argv[2]); print('noted', flush=True); time.sleep(600)"
)
SOON = 20.0  # the end of a process is detected immediately; the machine may be busy


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has noted its birth as the worker ``host-other``."""
    command = [sys.executable, "-c", SLEEPER, str(tmp_path), "host-other"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def requeued() -> list[str]:
    return []


@pytest.fixture
def watch(bench: Bench, tmp_path: Path, requeued: list[str]) -> Iterator[SiblingWatch]:
    note_birth(tmp_path, "host-me")
    made = SiblingWatch(bench.store, tmp_path, "host-me", lambda: requeued.append("stirred"))
    yield made
    made.close()


def test_the_jobs_of_a_sibling_that_was_killed_wait_again_at_once(
    bench: Bench,
    tmp_path: Path,
    watch: SiblingWatch,
    other: subprocess.Popen[bytes],
    requeued: list[str],
) -> None:
    for _ in range(2):
        bench.submit()
    theirs, mine = bench.claimed("host-other"), bench.claimed("host-me")
    beat(bench.engine, WorkerState("host-other", ["m"], 2, 2, 1.0))
    watch.look(0.0)
    assert bench.job(theirs.id).status == "running"
    other.kill()
    started = time.monotonic()
    watch.look(SOON)
    assert time.monotonic() - started < SOON, "the look ends with the sibling"
    assert bench.path(theirs.id)[-1] == ("running", "queued", 1, "sibling:host-me")
    assert bench.job(theirs.id).lost_count == 1
    assert bench.job(mine.id).status == "running"
    assert requeued == ["stirred"]
    assert seen_workers(bench.engine) == []
    assert noted_workers(tmp_path) == {os.getpid(): "host-me"}
    assert bench.claimed("host-me").id == theirs.id, "without a delay after the first loss"


def test_a_sibling_that_had_died_before_the_first_look_is_found(
    bench: Bench, watch: SiblingWatch, other: subprocess.Popen[bytes]
) -> None:
    bench.submit()
    theirs = bench.claimed("host-other")
    other.kill()
    other.wait()
    watch.look(0.0)
    assert bench.job(theirs.id).status == "queued"


def test_a_sibling_that_said_goodbye_leaves_nothing_to_do(
    tmp_path: Path, watch: SiblingWatch, other: subprocess.Popen[bytes], requeued: list[str]
) -> None:
    watch.look(0.0)
    for path in (tmp_path / "workers").glob(f"{other.pid}.*"):
        path.unlink()
    other.kill()
    watch.look(SOON)
    assert requeued == []


def test_while_the_database_is_away_it_tries_again(
    bench: Bench,
    watch: SiblingWatch,
    other: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench.submit()
    theirs = bench.claimed("host-other")
    watch.look(0.0)
    other.kill()

    def away(*_: Any, **__: Any) -> None:
        raise StorageUnavailable("The database is away.", retry_after_seconds=1)

    with monkeypatch.context() as patched:
        patched.setattr(siblings, "recover_worker", away)
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                watch.look(0.1 if _ else SOON)
    assert bench.job(theirs.id).status == "running"
    watch.look(0.0)
    assert bench.job(theirs.id).status == "queued"


def test_without_process_descriptors_nothing_is_watched_and_nothing_fails(
    bench: Bench,
    watch: SiblingWatch,
    other: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench.submit()
    theirs = bench.claimed("host-other")
    monkeypatch.delattr(os, "pidfd_open")
    watch.look(0.0)
    other.kill()
    other.wait()
    watch.look(0.0)
    assert bench.job(theirs.id).status == "running", "the supervisor or the lease sees to it"
