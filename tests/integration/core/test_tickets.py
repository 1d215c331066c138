"""Tickets reach a real Celery worker, and never block the publisher."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery

from tests.servers import RedisServer, free_port
from textmill.core.events import make_redis
from textmill.core.settings import Settings
from textmill.core.tickets import (
    MAX_WAITING_TICKETS,
    TASK_NAME,
    TicketPublisher,
    make_celery,
    queue_name,
)


def settings_of(redis_url: str) -> Settings:
    return Settings(home=Path("/nowhere"), database_url="sqlite:///x", redis_url=redis_url)


def waiting(redis_url: str, model: str) -> int:
    with make_redis(redis_url) as client:
        return int(client.llen(queue_name(model)))


@contextmanager
def consuming(redis_url: str, models: tuple[str, ...]) -> Iterator[queue.Queue[str]]:
    """A Celery worker with our configuration, in a thread; yields the received tickets."""
    app: Celery = make_celery(settings_of(redis_url), models)
    told: queue.Queue[str] = queue.Queue()
    app.task(name=TASK_NAME, ignore_result=True)(told.put)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Celery warns of root and of its own defaults
        worker = app.Worker(
            pool="threads",
            concurrency=2,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel="CRITICAL",
        )
        # Signals belong to the main thread; start() would install handlers for them.
        thread = threading.Thread(target=worker.start, daemon=True)
        thread.start()
        try:
            yield told
        finally:
            worker.stop()
            thread.join(10)
            app.close()


def test_a_ticket_reaches_a_worker_that_serves_the_model(own_redis: RedisServer) -> None:
    publisher = TicketPublisher(make_celery(settings_of(own_redis.url)))
    with consuming(own_redis.url, ("mine",)) as told:
        publisher.publish("mine")
        assert told.get(timeout=20) == "mine"
        publisher.publish("other")
        publisher.publish("mine")
        assert told.get(timeout=20) == "mine"
        publisher.close()
        assert told.empty()
    assert waiting(own_redis.url, "other") == 1


def test_closing_publishes_what_waits(own_redis: RedisServer) -> None:
    publisher = TicketPublisher(make_celery(settings_of(own_redis.url)))
    for _ in range(50):
        publisher.publish("m")
    publisher.close(timeout_seconds=20)
    assert waiting(own_redis.url, "m") == 50


def test_a_publisher_that_never_published_closes_at_once(redis_url: str) -> None:
    TicketPublisher(make_celery(settings_of(redis_url))).close()


def publish_many(publisher: TicketPublisher, number: int) -> float:
    """The longest that one publish took, in seconds."""
    longest = 0.0
    for _ in range(number):
        began = time.monotonic()
        publisher.publish("m")
        longest = max(longest, time.monotonic() - began)
    return longest


def test_with_redis_gone_publishing_neither_waits_nor_raises() -> None:
    publisher = TicketPublisher(make_celery(settings_of(f"redis://127.0.0.1:{free_port()}/0")))
    assert publish_many(publisher, MAX_WAITING_TICKETS + 100) < 0.5
    began = time.monotonic()
    publisher.close(timeout_seconds=0.5)
    assert time.monotonic() - began < 5
    while not publisher._waiting.empty():  # else its thread would run until the session ends
        publisher._waiting.get_nowait()
    publisher.close(timeout_seconds=10)
    assert publisher._thread is not None
    assert not publisher._thread.is_alive()


def test_with_redis_frozen_publishing_neither_waits_nor_raises_and_goes_on_later(
    own_redis: RedisServer,
) -> None:
    publisher = TicketPublisher(make_celery(settings_of(own_redis.url)))
    publisher.publish("m")
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    try:
        assert publish_many(publisher, 20) < 0.5
    finally:
        os.kill(own_redis.process.pid, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while waiting(own_redis.url, "m") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # another process's list has no event of ours
    publisher.close(timeout_seconds=10)


def test_the_settings_that_the_traps_ask_for() -> None:
    conf = make_celery(settings_of("redis://h:1/0"), ("a", "b")).conf
    assert conf.task_acks_late is False
    assert conf.worker_disable_prefetch is True
    assert conf.task_publish_retry is False
    assert conf.broker_connection_max_retries is None
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.broker_transport_options["socket_timeout"] <= 2
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
    assert [entry.name for entry in conf.task_queues] == ["textmill.model.a", "textmill.model.b"]


@pytest.mark.parametrize("model", ["m", "arxiv-abstracts", "a.b_c"])
def test_every_model_has_a_queue_of_its_own(model: str) -> None:
    assert queue_name(model) == f"textmill.model.{model}"
