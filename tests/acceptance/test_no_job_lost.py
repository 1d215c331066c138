"""The counted proof: whatever dies, every accepted job reaches exactly one final state.

Workers are killed and drained, Redis is killed, frozen and started again empty, all while jobs are
submitted over HTTP. Then everything is counted, in the rows and in ``job_events``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

from sqlalchemy import select, update

from core.db import make_engine, reading, writing
from core.models import Job, JobEvent
from tests.acceptance.stack import Stack
from tests.servers import RedisServer

NUM_ROUNDS = 6
JOBS_A_ROUND = 30
LENGTH = 150  # tokens; long enough to be caught in the middle
FINAL = {"succeeded", "failed", "canceled"}


def test_every_accepted_job_ends_exactly_once(
    make_stack: Callable[..., Stack], database_url: str, own_redis: RedisServer
) -> None:
    stack = make_stack(database_url, own_redis, TEXTMILL_SLOTS="8", TEXTMILL_DRAIN_SECONDS="0.3")
    stack.start(num_workers=2)
    accepted: dict[str, int] = {}

    def submit_some(round_: int) -> None:
        for number in range(JOBS_A_ROUND):
            seed = round_ * JOBS_A_ROUND + number
            job = stack.submit(
                strategy="sampling", seed=seed, max_new_tokens=LENGTH, prompt="Again"
            )
            accepted[job["id"]] = seed

    disturbances = [
        lambda: stack.kill_worker(_busy(stack)),
        own_redis.stop,
        own_redis.start,
        lambda: _signal(own_redis, signal.SIGSTOP),
        lambda: _signal(own_redis, signal.SIGCONT),
        lambda: stack.drain_worker(_busy(stack)),
    ]
    assert len(disturbances) == NUM_ROUNDS
    for round_, disturb in enumerate(disturbances):
        submit_some(round_)
        disturb()
        _expire_leases_of_the_dead(stack)
        while len(stack.workers) < 2:
            stack.add_worker()
    jobs = {job_id: stack.wait(job_id, 120) for job_id in accepted}

    assert len(jobs) == NUM_ROUNDS * JOBS_A_ROUND
    assert Counter(job["status"] for job in jobs.values()) == {"succeeded": len(jobs)}
    # Otherwise nothing was disturbed, and nothing proven.
    assert max(job["attempt"] for job in jobs.values()) > 1
    ends = _final_events(database_url)
    assert {job_id: ends[job_id] for job_id in jobs} == dict.fromkeys(jobs, 1)
    # A repeated computation gives the undisturbed text.
    for job_id in list(accepted)[::20]:
        again = stack.generate(
            strategy="sampling", seed=accepted[job_id], max_new_tokens=LENGTH, prompt="Again"
        )
        assert again["text"] == jobs[job_id]["text"]


def _busy(stack: Stack) -> subprocess.Popen[bytes]:
    """The first worker, as soon as the database says that it runs something."""
    worker = stack.workers[0]
    engine = make_engine(stack.database_url, pool_size=1)
    held = select(Job.id).where(
        Job.status == "running", Job.worker_id.like(f"%-{worker.pid}-%"), Job.text != ""
    )
    deadline = time.monotonic() + 60
    while True:
        with reading(engine) as connection:
            if connection.execute(held.limit(1)).first() is not None:
                break
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(0.01)  # polling another process's state: there is no event to await
    engine.dispose()
    return worker


def _signal(redis: RedisServer, number: signal.Signals) -> None:
    assert redis.process is not None
    os.kill(redis.process.pid, number)


def _expire_leases_of_the_dead(stack: Stack) -> None:
    """Let 30 s pass for what a killed worker held; the living renew theirs within 5 s."""
    engine = make_engine(stack.database_url, pool_size=1)
    with writing(engine) as connection:
        connection.execute(
            update(Job).where(Job.status == "running").values(lease_until=Job.lease_until - 25_000)
        )
    engine.dispose()


def _final_events(database_url: str) -> Counter[str]:
    engine = make_engine(database_url, pool_size=1)
    with reading(engine) as connection:
        query = select(JobEvent.job_id).where(JobEvent.to_status.in_(FINAL))
        found = Counter(connection.execute(query).scalars())
    engine.dispose()
    return found
