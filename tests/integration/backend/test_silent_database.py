"""A database that does not answer: every request ends within five seconds, with 503."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites, problem
from tests.servers import Proxy, proxied_postgres
from textmill.core.database.connections import make_engine, writing
from textmill.core.errors import StorageUnavailable

MOST_SECONDS = 5.0
UNKNOWN = "00000000-0000-4000-8000-000000000000"
READS = [
    JOBS, f"{JOBS}/export", f"{JOBS}/{UNKNOWN}", f"{JOBS}/{UNKNOWN}?wait=30", f"{RUNS}/{UNKNOWN}",
    "/api/v1/queue", "/api/v1/models", "/readyz", "/", "/history",
]  # fmt: skip


@pytest.fixture
def proxied(postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[tuple[Site, Proxy, str]]:
    with proxied_postgres(postgres_url) as (url, proxy):
        sites = Sites(url, redis_url, tmp_path)
        yield sites(), proxy, url
        proxy.thaw()
        sites.close()


def ask(site: Site, path: str, method: str = "GET") -> tuple[int, float]:
    """Return the status and the duration of one request on a new client."""
    started = time.monotonic()
    with site.app.test_client() as client:
        body = {"json": {"prompt": "a", "model": "tiny"}} if method == "POST" else {}
        status = client.open(path, method=method, **body).status_code  # type: ignore[arg-type]
    return status, time.monotonic() - started


def ask_all(site: Site, asked: list[tuple[str, str]]) -> list[tuple[int, float]]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda item: ask(site, *item), asked))


@pytest.mark.parametrize("is_first", [True, False], ids=["no connection yet", "connections kept"])
def test_a_frozen_server_ends_every_request_with_503_in_time(
    proxied: tuple[Site, Proxy, str], is_first: bool
) -> None:
    site, proxy, _ = proxied
    if is_first:
        site.services.store.engine.dispose()
    else:
        assert {status for status, _ in ask_all(site, [(JOBS, "GET")] * 8)} == {200}
    site.services.models._served_until = 0.0
    proxy.freeze()
    asked = [(path, "GET") for path in READS] + [(JOBS, "POST")] * 30
    ended = ask_all(site, asked)
    assert {status for status, _ in ended} == {503}
    assert max(seconds for _, seconds in ended) < MOST_SECONDS
    started = time.monotonic()
    assert site.client.get("/healthz").status_code == 200
    assert time.monotonic() - started < 0.5
    # The circuit breaker is open: most requests fail immediately; one per second is tried.
    later = ask_all(site, [(JOBS, "GET")] * 20)
    assert {status for status, _ in later} == {503}
    assert sum(seconds < 1 for _, seconds in later) >= 18
    proxy.thaw()
    _await_answer(site)
    assert site.submit()["status"] == "queued"


def _await_answer(site: Site) -> None:
    """Wait until the breaker lets a caller try."""
    deadline = time.monotonic() + 10
    while ask(site, JOBS)[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _freeze_before(statement: str | None, engine: Engine, proxy: Proxy) -> float:
    """Return the duration of a transaction whose server freezes before a statement or COMMIT."""
    started = 0.0
    try:
        with writing(engine) as connection:
            connection.execute(text("SELECT 1"))
            proxy.freeze()
            started = time.monotonic()
            if statement:
                connection.execute(text(statement))
    except StorageUnavailable:
        return time.monotonic() - started
    raise AssertionError("the transaction succeeded")


@pytest.mark.parametrize("statement", ["SELECT 2", None], ids=["statement", "commit"])
def test_a_server_that_freezes_in_the_middle_of_a_transaction(
    proxied: tuple[Site, Proxy, str], statement: str | None
) -> None:
    _, proxy, url = proxied
    engine = make_engine(url, pool_size=2, patience_seconds=2.2)
    assert _freeze_before(statement, engine, proxy) < 3
    proxy.thaw()
    deadline = time.monotonic() + 10
    while True:
        try:
            with writing(engine) as connection:
                assert connection.execute(text("SELECT 3")).scalar_one() == 3
            break
        except StorageUnavailable:  # the breaker lets one caller a second try
            assert time.monotonic() < deadline
            time.sleep(0.1)
    engine.dispose()


def test_after_a_server_cuts_all_connections_the_next_request_succeeds(
    proxied: tuple[Site, Proxy, str],
) -> None:
    site, proxy, _ = proxied
    assert ask(site, JOBS)[0] == 200
    proxy.cut()
    assert ask(site, JOBS)[0] == 200


def test_many_statements_of_one_request_share_one_deadline(
    proxied: tuple[Site, Proxy, str], postgres_url: str
) -> None:
    """Lock a table, which blocks some statements and not others."""
    site, _, _ = proxied
    holder = make_engine(postgres_url, pool_size=1, patience_seconds=None)
    for table in ("workers", "model_cards"):
        site.services.models._served_until = 0.0
        with writing(holder) as connection:
            connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            for path in ("/", "/readyz"):
                status, seconds = ask(site, path)
                assert status in {200, 503}
                assert seconds < MOST_SECONDS, (table, path)
    holder.dispose()


@contextmanager
def locked(database_url: str, *, against_readers: bool) -> Iterator[None]:
    """Lock the SQLite file in another connection."""
    file = str(make_url(database_url).database)
    other = sqlite3.connect(file, isolation_level=None, timeout=10)
    if against_readers:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("PRAGMA journal_mode = DELETE")  # takes the file out of WAL: nobody reads
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        if against_readers:
            other.execute("PRAGMA locking_mode = NORMAL")
            other.execute("PRAGMA journal_mode = WAL")
        other.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("against_readers", [False, True], ids=["writers", "readers too"])
def test_a_locked_file_ends_every_request_in_time(
    site: Site, database_url: str, against_readers: bool
) -> None:
    job_id = site.submit()["id"]
    site.services.models._served_until = 0.0
    site.services.store.engine.dispose()  # the lock is met when connecting, too
    with locked(database_url, against_readers=against_readers):
        asked = [(path, "GET") for path in READS] + [(JOBS, "POST")] * 20
        ended = ask_all(site, asked)
        assert max(seconds for _, seconds in ended) < MOST_SECONDS
        by_path = dict(zip(asked, [status for status, _ in ended], strict=True))
        assert by_path[JOBS, "POST"] == by_path["/readyz", "GET"] == 503
        assert by_path[JOBS, "GET"] == (503 if against_readers else 200)
        started = time.monotonic()
        problem(site.client.post(f"{JOBS}/{job_id}/cancel"), 503)
        assert time.monotonic() - started < MOST_SECONDS
    _await_answer(site)
    deadline = time.monotonic() + 5
    while ask(site, JOBS, "POST")[0] != 202:  # the breaker of the writers
        assert time.monotonic() < deadline
        time.sleep(0.1)
