"""The topology of docker-compose.yml from processes: PostgreSQL, Redis, one web, two workers."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import select

from tests.acceptance.stack import Stack
from tests.servers import RedisServer
from textmill.core.database.connections import make_engine, reading
from textmill.core.database.tables import Job


def test_two_workers_share_the_jobs_of_one_queue(
    postgres_url: str, own_redis: RedisServer, make_stack: Callable[..., Stack]
) -> None:
    stack = make_stack(postgres_url, own_redis, TEXTMILL_SLOTS="2").start(num_workers=2)
    while len(stack.request("GET", "/api/v1/queue").json["workers"]) < 2:
        time.sleep(0.1)  # ready with the first of them; the other is seen by a heartbeat
    jobs = [stack.submit(strategy="sampling", max_new_tokens=200) for _ in range(16)]
    assert {stack.wait(job["id"])["status"] for job in jobs} == {"succeeded"}
    engine = make_engine(postgres_url)
    with reading(engine) as connection:
        took = set(connection.execute(select(Job.worker_id)).scalars())
    engine.dispose()
    assert len(took) == 2


def test_a_worker_takes_only_the_models_that_it_serves(
    postgres_url: str, own_redis: RedisServer, make_stack: Callable[..., Stack]
) -> None:
    stack = make_stack(postgres_url, own_redis)
    stack.start_web()
    stack.add_worker(TEXTMILL_SERVE="tiny-llama")
    stack.wait_ready()
    neo = stack.submit(model="tiny-neo", max_new_tokens=4)
    llama = stack.submit(model="tiny-llama", max_new_tokens=4)
    assert stack.wait(llama["id"])["status"] == "succeeded"
    assert stack.request("GET", neo["links"]["self"]).json["status"] == "queued"
    stack.add_worker(TEXTMILL_SERVE="tiny-neo")
    assert stack.wait(neo["id"])["status"] == "succeeded"


def test_work_goes_on_with_redis_gone(
    sqlite_url: str, own_redis: RedisServer, make_stack: Callable[..., Stack]
) -> None:
    stack = make_stack(sqlite_url, own_redis).start()
    own_redis.stop()
    job = stack.submit(max_new_tokens=8)
    events = stack.events(job["links"]["events"])
    done = stack.wait(job["id"])
    assert done["status"] == "succeeded"
    assert "".join(d["text"] for _, name, d in events if name == "token") == done["text"]
    assert stack.request("GET", "/readyz").json["redis"] == "degraded"
    assert stack.request("GET", "/readyz").status == 200


def test_a_worker_that_is_ended_as_soon_as_it_is_ready_leaves_in_good_order(
    make_stack: Callable[..., Stack], sqlite_url: str, own_redis: RedisServer
) -> None:
    stack = make_stack(sqlite_url, own_redis).start()
    assert stack.drain_worker(stack.workers[0]) == 0
    assert stack.request("GET", "/api/v1/queue").json["workers"] == []
    job = stack.submit(max_new_tokens=4)
    stack.add_worker()
    assert stack.wait(job["id"])["status"] == "succeeded"
