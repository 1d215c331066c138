"""Every accepted job reaches exactly one final state, whichever process is killed.

Clients submit over HTTP with keys, and repeat requests without an answer. Meanwhile workers are
killed, drained and frozen beyond their leases, Redis is killed, frozen and restarted empty, and the
web process is killed. Then the rows and ``job_events`` are counted, and the completions compared
with those of an undisturbed product with the same seeds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from tests.acceptance.stack import Stack
from tests.servers import RedisServer
from textmill.core.database.connections import make_engine, now_ms, reading, writing
from textmill.core.database.tables import Job, JobEvent, Worker
from textmill.core.errors import StorageUnavailable

NUM_JOBS = 200
NUM_CLIENTS = 4
LENGTH = 100  # tokens
BAIT_SEED = NUM_JOBS  # the job that is submitted to be caught in the middle,
BAIT_LENGTH = 1900  # so long that a worker can be
FINAL = {"succeeded", "failed", "canceled"}
LEGAL = {
    (None, "queued"),
    ("queued", "running"),
    ("running", "queued"),
    ("running", "succeeded"),
}


def body(seed: int) -> dict[str, Any]:
    length = BAIT_LENGTH if seed == BAIT_SEED else LENGTH
    return {"prompt": "Again", "strategy": "sampling", "seed": seed, "max_new_tokens": length}


@pytest.fixture(scope="session")
def undisturbed(stack: Stack) -> dict[int, str]:
    """Seed → text, from an undisturbed product."""
    seeds = [*range(NUM_JOBS), BAIT_SEED]
    ids = [stack.request("POST", "/api/v1/jobs", body(seed)).json["id"] for seed in seeds]
    return {seed: stack.wait(job_id)["text"] for seed, job_id in zip(seeds, ids, strict=True)}


@dataclass
class Clients:
    """Submit the jobs at the given rate on a few threads, each until the answer is 202."""

    stack: Stack
    accepted: dict[int, str] = field(default_factory=dict)
    num_unanswered: int = 0
    go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def run(self) -> None:
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            list(pool.map(self._submit, range(NUM_JOBS)))

    def _submit(self, seed: int) -> None:
        assert self.go_on.acquire(timeout=120)
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = self.stack.request(
                    "POST", "/api/v1/jobs", body(seed), {"Idempotency-Key": f"seed-{seed}"}
                )
            except OSError:  # the web process was killed, so whether the job exists is unknown
                self.num_unanswered += 1
                assert time.monotonic() < deadline
                time.sleep(0.05)  # as a client does before it asks again
                continue
            if answer.status == 503:  # a frozen worker holds the database's lock: come back later
                assert time.monotonic() < deadline
                time.sleep(0.2)
                continue
            assert answer.status == 202, answer.body
            self.accepted[seed] = answer.json["id"]
            return


@pytest.mark.timeout(600)
def test_every_accepted_job_ends_exactly_once(
    undisturbed: dict[int, str],
    database_url: str,
    own_redis: RedisServer,
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack(database_url, own_redis, TEXTMILL_SLOTS="8", TEXTMILL_DRAIN_SECONDS="0.3")
    stack.start(num_workers=2)
    clients = Clients(stack)
    submitting = threading.Thread(target=clients.run)
    submitting.start()
    disturbances: list[Callable[[], object]] = [
        lambda: _kill(stack),
        own_redis.stop,
        lambda: _kill_web(stack),
        own_redis.start,
        lambda: _signal(own_redis, signal.SIGSTOP),
        lambda: _freeze_beyond_the_lease(stack),
        lambda: _signal(own_redis, signal.SIGCONT),
        lambda: _drain(stack),
    ]
    share = NUM_JOBS // len(disturbances)
    for disturb in disturbances:
        clients.go_on.release(share)
        disturb()
        stack.restart_failed()
        while len(stack.workers) < 2:
            stack.add_worker()
    clients.go_on.release(NUM_JOBS)
    submitting.join(120)
    assert not submitting.is_alive()
    jobs = {seed: stack.wait(job_id, 180) for seed, job_id in clients.accepted.items()}

    assert len(jobs) == len({job["id"] for job in jobs.values()}) == NUM_JOBS
    assert Counter(job["status"] for job in jobs.values()) == {"succeeded": NUM_JOBS}
    baits = [stack.wait(job_id, 180) for job_id in stack.baits]
    assert {job["status"] for job in baits} == {"succeeded"}
    assert {job["text"] for job in baits} == {undisturbed[BAIT_SEED]}
    paths = _paths(database_url)
    accepted = {job["id"]: job for job in [*jobs.values(), *baits]}
    assert set(paths) == set(accepted)  # a key made one job and no more
    for job_id, path in paths.items():
        assert set(path) <= LEGAL
        assert [step[1] for step in path[:-1]] == [step[0] for step in path[1:]]
        assert sum(to in FINAL for _, to in path) == 1
        assert accepted[job_id]["attempt"] == path.count(("queued", "running"))
    assert {seed: job["text"] for seed, job in jobs.items()} == {
        seed: undisturbed[seed] for seed in range(NUM_JOBS)
    }
    # Otherwise nothing was disturbed, and the test proves nothing.
    taken_back = sum(("running", "queued") in path for path in paths.values())
    assert taken_back >= 3


def _kill(stack: Stack) -> None:
    worker, _ = _catch(stack)
    stack.kill_worker(worker)
    _expire_leases(stack, worker)


def _drain(stack: Stack) -> None:
    """SIGTERM in the middle of a text; again, should the text have ended within the drain."""
    while True:
        worker, bait = _catch(stack)
        _resume(worker)
        assert stack.drain_worker(worker) == 0
        if ("running", "queued") in _paths(stack.database_url)[bait]:
            return
        stack.add_worker()


def _kill_web(stack: Stack) -> None:
    """SIGKILL in the middle of submissions."""
    stack.kill_web()
    stack.start_web()
    stack.wait_alive()


def _freeze_beyond_the_lease(stack: Stack) -> None:
    """Freeze a worker until others have its jobs, then resume it as a zombie.

    A worker that is frozen within a transaction would hold locks of the database, so that no
    sweeper could take its jobs back. Such a worker is resumed, and another one is frozen.
    """
    for _ in range(20):
        worker, bait = _catch(stack)
        try:
            with contextlib.suppress(StorageUnavailable):
                _expire_leases(stack, worker)
                _await_taken_back(stack, worker, bait)
                return
        finally:
            _resume(worker)
    raise AssertionError("always frozen in the middle of a transaction" + stack.logs())


def _await_taken_back(stack: Stack, worker: subprocess.Popen[bytes], job_id: str) -> None:
    _await(stack, lambda: not _runs(stack, worker, job_id), "the lease was not taken back")


def _expire_leases(stack: Stack, worker: subprocess.Popen[bytes]) -> None:
    """Let the 30 s of a lease pass for what one dead worker held; the product's value stays."""
    engine = make_engine(stack.database_url, pool_size=1)
    with writing(engine) as connection:
        mine = Job.worker_id.like(f"%-{worker.pid}-%")
        expired = update(Job).where(Job.status == "running", mine)
        connection.execute(expired.values(lease_until=now_ms() - 1))
        # As one who saw it die: else a sweeper would first make sure of its silence.
        connection.execute(delete(Worker).where(Worker.id.like(f"%-{worker.pid}-%")))
    engine.dispose()


def _submit_bait(stack: Stack) -> str:
    deadline = time.monotonic() + 60
    while True:
        answer = stack.request("POST", "/api/v1/jobs", body(BAIT_SEED))
        if answer.status == 202:
            bait: str = answer.json["id"]
            stack.baits.append(bait)
            return bait
        assert answer.status == 503, answer.body
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _catch(stack: Stack) -> tuple[subprocess.Popen[bytes], str]:
    """Freeze a worker while it generates a long completion; return it and the job's id.

    It is frozen because the job could end between the query and a signal: only a frozen worker's
    jobs are known for certain.
    """
    while True:
        bait = _submit_bait(stack)
        found: list[subprocess.Popen[bytes]] = []

        def look(bait: str = bait, found: list[subprocess.Popen[bytes]] = found) -> bool:
            found[:] = [worker for worker in stack.workers if _runs(stack, worker, bait)]
            return bool(found) or _has_ended(stack, bait)

        _await(stack, look, "no worker is in the middle of a text")
        for worker in found:
            worker.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if _runs(stack, worker, bait):
                return worker, bait
            _resume(worker)


def _resume(worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGCONT)


def _runs(stack: Stack, worker: subprocess.Popen[bytes], job_id: str) -> bool:
    status, worker_id = _row(stack, job_id)
    return status == "running" and f"-{worker.pid}-" in worker_id


def _has_ended(stack: Stack, job_id: str) -> bool:
    return _row(stack, job_id)[0] in FINAL


def _row(stack: Stack, job_id: str) -> tuple[str, str]:
    """A job's status and its worker's id ("" when it has none)."""
    engine = make_engine(stack.database_url, pool_size=1)
    with reading(engine) as connection:
        query = select(Job.status, Job.worker_id).where(Job.id == job_id)
        row = connection.execute(query).one()
    engine.dispose()
    return row.status, row.worker_id or ""


def _await(stack: Stack, condition: Callable[[], bool], complaint: str) -> None:
    """Poll the state of other processes, which cannot be awaited as an event."""
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, complaint + stack.logs()
        stack.restart_failed()
        time.sleep(0.02)


def _signal(redis: RedisServer, number: signal.Signals) -> None:
    assert redis.process is not None
    os.kill(redis.process.pid, number)


def _paths(database_url: str) -> dict[str, list[tuple[str | None, str]]]:
    engine = make_engine(database_url, pool_size=1)
    query = select(JobEvent.job_id, JobEvent.from_status, JobEvent.to_status)
    paths: dict[str, list[tuple[str | None, str]]] = {}
    with reading(engine) as connection:
        for job_id, from_status, to_status in connection.execute(query.order_by(JobEvent.number)):
            paths.setdefault(job_id, []).append((from_status, to_status))
    engine.dispose()
    return paths
