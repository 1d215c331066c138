"""Workers that are paused for longer than their leases, as on a suspended laptop, lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import select

from tests.acceptance.stack import Stack
from textmill.core.database.connections import make_engine, now_ms, reading
from textmill.core.database.tables import Job

# A worker with leases of two seconds, all else in proportion.
_QUICK_WORKER = """
import os, sys
from textmill.core.settings import Settings
from textmill.worker.app import main
from textmill.worker.intervals import Intervals
intervals = Intervals(
    lease=2.0, heartbeat=0.3, progress=0.3, poll=0.2, sweep=0.3, silence=1.2, settled=0.5
)
sys.exit(main(Settings.from_environment(os.environ), intervals))
"""
NUM_JOBS = 4
LENGTH = 500  # tokens: long enough to be caught in the middle


def test_a_pause_of_a_worker_and_of_the_whole_machine_costs_no_job(
    make_stack: Callable[..., Stack], sqlite_url: str
) -> None:
    stack = make_stack(sqlite_url, None, TEXTMILL_SLOTS="8")
    stack.programs["worker"] = [sys.executable, "-P", "-c", _QUICK_WORKER]
    stack.start()
    _lose_nothing(stack, lambda: list(stack.workers))
    stack.add_worker()
    _await(lambda: len(stack.request("GET", "/api/v1/queue").json["workers"]) == 2)
    _lose_nothing(stack, lambda: [*stack.workers, *([stack.web] if stack.web else [])])


def _lose_nothing(stack: Stack, processes: Callable[[], list[subprocess.Popen[bytes]]]) -> None:
    ids = _submit(stack)
    with _stopped(processes()):
        assert _running(stack.database_url), "all jobs had ended before the pause"
        # As much beyond the lease as a sweeper would need to make up its mind.
        _await(lambda: _expired_for_ms(stack.database_url) > 2_000)
    jobs = [stack.wait(job_id) for job_id in ids]
    assert [(job["status"], job["attempt"]) for job in jobs] == [("succeeded", 1)] * NUM_JOBS


def _submit(stack: Stack) -> list[str]:
    """Jobs of which one at least has just begun on every worker."""
    ids = [
        stack.submit(strategy="sampling", seed=seed, max_new_tokens=LENGTH)["id"]
        for seed in range(NUM_JOBS)
    ]
    _await(lambda: bool(_running(stack.database_url)))
    return ids


@contextmanager
def _stopped(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    for process in processes:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def _running(database_url: str) -> list[int]:
    """For how many milliseconds the leases of running jobs are over."""
    engine = make_engine(database_url, pool_size=1)
    with reading(engine) as connection:
        query = select(now_ms() - Job.lease_until).where(Job.status == "running")
        found = list(connection.execute(query).scalars())
    engine.dispose()
    return found


def _expired_for_ms(database_url: str) -> int:
    return min(_running(database_url))


def _await(condition: Callable[[], bool]) -> None:
    """Poll the state of other processes, which cannot be awaited as an event."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
