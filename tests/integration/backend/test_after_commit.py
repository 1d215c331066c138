"""After the commit, neither an estimate nor Redis nor a locked table fails the response."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DataError, InternalError, OperationalError, ProgrammingError

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites
from tests.servers import RedisServer
from textmill.core.database.connections import make_engine, writing
from textmill.core.errors import StorageUnavailable

UNKNOWN = {"position": None, "eta_seconds": None}
QUICKLY_SECONDS = 4.0  # below the 5 s of a lock time-out; usually it takes a second
RUN = {"prompt": "a", "variants": [{}, {"strategy": "sampling"}]}


@contextmanager
def locked_workers(url: str) -> Iterator[None]:
    """Lock the table of workers in another session."""
    engine = make_engine(url)
    with writing(engine) as connection:
        connection.execute(text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
        yield
    engine.dispose()


@contextmanager
def failing(site: Site, word: str, error: Exception) -> Iterator[None]:
    """Make the statements that contain a word fail."""

    def fail(*arguments: Any) -> None:
        if word in arguments[2]:
            raise error

    engine = site.services.store.engine
    event.listen(engine, "before_cursor_execute", fail)
    yield
    event.remove(engine, "before_cursor_execute", fail)


def timed(call: Callable[[], Any], status: int) -> Any:
    started = time.monotonic()
    answer = call()
    assert time.monotonic() - started < QUICKLY_SECONDS
    assert answer.status_code == status, answer.text
    return answer


def test_a_locked_table_of_workers_neither_fails_nor_holds_up_a_submission(
    make_site: Sites, postgres_url: str
) -> None:
    make_site._urls["TEXTMILL_DATABASE_URL"] = postgres_url
    site = make_site()
    key = {"Idempotency-Key": "k"}
    site.submit()  # so that the models' cards are known
    with locked_workers(postgres_url):
        made = timed(lambda: site.client.post(JOBS, json={"prompt": "a"}, headers=key), 202)
        run = timed(lambda: site.client.post(RUNS, json=RUN), 202)
        assert made.get_json()["queue"] == UNKNOWN
        assert [job["queue"] for job in run.get_json()["jobs"]] == [UNKNOWN, UNKNOWN]
        again = timed(lambda: site.client.post(JOBS, json={"prompt": "a"}, headers=key), 202)
        assert again.get_json()["id"] == made.get_json()["id"]
        links = made.get_json()["links"]
        timed(lambda: site.client.get(links["self"]), 200)
        timed(lambda: site.client.get(links["page"]), 200)
        form = {"prompt": "a", "strategy": "greedy", "model": "tiny"}
        page = timed(lambda: site.client.post("/generate", data=form), 303)
        timed(lambda: site.client.get(page.headers["Location"]), 200)
        timed(lambda: site.client.post(links["cancel"]), 202)
        timed(lambda: site.client.delete(links["self"]), 204)
    assert site.count_rows() == (1 + 2 + 1, 1)


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("select", {}, Exception("canceling statement due to lock time-out")),
        InternalError("select", {}, Exception("read-only")),
        ProgrammingError("select", {}, Exception("no such table: workers")),
        DataError("select", {}, Exception("out of range")),
        StorageUnavailable("busy", retry_after_seconds=1),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("word", ["row_number", "FROM workers", "finished_at DESC"])
def test_an_estimate_that_fails_leaves_the_answer_alone(
    site: Site, word: str, error: Exception
) -> None:
    with failing(site, word, error):
        job = timed(lambda: site.client.post(JOBS, json={"prompt": "a"}), 202).get_json()
    assert job["status"] == "queued"
    assert job["queue"] == UNKNOWN
    assert site.count_rows()[0] == 1


def test_a_hanging_estimate_does_not_delay_the_response(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(site.services.positions, "read", lambda jobs: hanging.wait(60))
    made = timed(lambda: site.client.post(JOBS, json={"prompt": "a"}), 202)
    assert made.get_json()["queue"] == UNKNOWN
    for _ in range(20):  # the next ones do not even ask
        timed(lambda: site.client.post(JOBS, json={"prompt": "a"}), 202)
    hanging.set()


def test_tickets_that_cannot_be_published_leave_the_answer_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: str) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(site.services.tickets, "publish", fail)
    timed(lambda: site.client.post(JOBS, json={"prompt": "a"}), 202)
    timed(lambda: site.client.post(RUNS, json=RUN), 202)


def test_a_frozen_redis_neither_fails_nor_holds_up_what_is_in_the_database(
    make_site: Sites, own_redis: RedisServer
) -> None:
    make_site._urls["TEXTMILL_REDIS_URL"] = own_redis.url
    site = make_site()
    running = site.submit()
    site.claim()
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        queued = timed(lambda: site.client.post(JOBS, json={"prompt": "a"}), 202).get_json()
        timed(lambda: site.client.post(running["links"]["cancel"]), 202)
        timed(lambda: site.client.post(queued["links"]["cancel"]), 202)
        timed(lambda: site.client.delete(running["links"]["self"]), 204)
        timed(lambda: site.client.delete(queued["links"]["self"]), 204)
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    assert site.count_rows() == (0, 0)
