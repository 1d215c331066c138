"""What becomes of the jobs of a worker process that was seen to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.core.conftest import Bench
from textmill.core.dead_workers import (
    FOLDER,
    note_birth,
    note_end,
    noted_workers,
    recover_all_workers,
    recover_worker,
)
from textmill.core.jobs.sweeping import MAX_LOSSES
from textmill.core.workers import WorkerState, beat, seen_workers


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_id(home: Path, pid: int, worker_id: str) -> Path:
    namespace = os.stat("/proc/self/ns/pid").st_ino
    path = home / FOLDER / f"{pid}.{namespace}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(worker_id)
    return path


def test_its_jobs_are_queued_again_at_once_and_count_as_lost(
    bench: Bench, tmp_path: Path, gone: int
) -> None:
    for _ in range(3):
        bench.submit()
    mine = [bench.claimed(f"host-{gone}-abc") for _ in range(2)]
    other = bench.claimed("host-1-abc")
    beat(bench.engine, WorkerState(f"host-{gone}-abc", ["m"], 2, 2, 1.0))
    path = write_id(tmp_path, gone, f"host-{gone}-abc")
    report = recover_worker(bench.store, tmp_path, gone, "supervisor:host")
    assert report is not None
    assert {job_id for job_id, _ in report.requeued} == {job.id for job in mine}
    for job in mine:
        found = bench.job(job.id)
        assert (found.status, found.lost_count, found.attempt) == ("queued", 1, 1)
        assert bench.path(job.id)[-1] == ("running", "queued", 1, "supervisor:host")
    assert bench.job(other.id).status == "running"
    assert seen_workers(bench.engine) == []
    assert not path.exists()
    assert recover_worker(bench.store, tmp_path, gone, "supervisor:host") is None


def test_a_worker_of_the_same_host_and_process_number_elsewhere_keeps_its_jobs(
    bench: Bench, tmp_path: Path, gone: int
) -> None:
    """Two containers may have one name, and the same numbers in each."""
    bench.submit()
    theirs = bench.claimed(f"host-{gone}-ffffff")
    write_id(tmp_path, gone, f"host-{gone}-aaaaaa")
    report = recover_worker(bench.store, tmp_path, gone, "supervisor:host")
    assert report is not None
    assert report.requeued == []
    assert bench.job(theirs.id).status == "running"


def test_a_job_that_ends_its_workers_fails_and_a_canceled_one_is_canceled(
    bench: Bench, tmp_path: Path, gone: int
) -> None:
    poison = bench.submit()
    for _ in range(MAX_LOSSES):
        bench.set(poison.id, not_before=0)
        bench.claimed(f"host-{gone}-abc")
        write_id(tmp_path, gone, f"host-{gone}-abc")
        recover_worker(bench.store, tmp_path, gone, "supervisor:host")
    assert (bench.job(poison.id).status, bench.job(poison.id).error_code) == (
        "failed",
        "worker_lost",
    )
    asked = bench.submit()
    bench.claimed(f"host-{gone}-abc")
    bench.store.request_cancel(asked.id)
    write_id(tmp_path, gone, f"host-{gone}-abc")
    recover_worker(bench.store, tmp_path, gone, "supervisor:host")
    assert bench.job(asked.id).status == "canceled"


def test_a_process_that_was_no_worker_or_has_said_goodbye_leaves_nothing(
    bench: Bench, tmp_path: Path, gone: int
) -> None:
    assert recover_worker(bench.store, tmp_path, gone, "supervisor:host") is None
    write_id(tmp_path, gone, "")
    assert recover_worker(bench.store, tmp_path, gone, "supervisor:host") is None
    note_birth(tmp_path, "host-1-abc")
    assert noted_workers(tmp_path) == {os.getpid(): "host-1-abc"}
    note_end(tmp_path)
    assert noted_workers(tmp_path) == {}
    note_end(tmp_path)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_start_takes_back_what_all_dead_workers_of_its_folder_held(
    bench: Bench, tmp_path: Path, gone: int
) -> None:
    for _ in range(2):
        bench.submit()
    dead = bench.claimed(f"host-{gone}-abc")
    alive = bench.claimed(f"host-{os.getpid()}-abc")
    write_id(tmp_path, gone, f"host-{gone}-abc")
    write_id(tmp_path, os.getpid(), f"host-{os.getpid()}-abc")
    (tmp_path / FOLDER / "notes.txt").touch()
    (tmp_path / FOLDER / f"{gone}.1").write_text(f"host-{os.getpid()}-abc")  # another container's
    recover_all_workers(bench.store, tmp_path, "start:host")
    assert (bench.job(dead.id).status, bench.job(alive.id).status) == ("queued", "running")
    recover_all_workers(bench.store, tmp_path / "nowhere", "start:host")


def test_another_worker_under_the_same_process_number_is_left_alone(
    bench: Bench, tmp_path: Path, gone: int
) -> None:
    bench.submit()
    theirs = bench.claimed(f"host-{gone}-new")
    write_id(tmp_path, gone, f"host-{gone}-new")
    assert recover_worker(bench.store, tmp_path, gone, "s", expected_id=f"host-{gone}-old") is None
    assert bench.job(theirs.id).status == "running"
    assert noted_workers(tmp_path) == {gone: f"host-{gone}-new"}


def test_a_folder_that_cannot_be_written_costs_no_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    note_birth(tmp_path / "file", "host-1-abc")
    note_end(tmp_path / "file")
