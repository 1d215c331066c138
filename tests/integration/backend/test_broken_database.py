"""A database that is damaged, gone, read-only or not migrated: 503 everywhere, never 500."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import event, make_url, text

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites, problem
from textmill.core.database.connections import reading, writing
from textmill.core.database.tables import JOBS as JOBS_TABLE
from textmill.core.errors import Conflict, Unstorable

ONLY_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
UNKNOWN = "00000000-0000-4000-8000-000000000000"
READS = [
    JOBS, f"{JOBS}?q=word", f"{JOBS}/export", f"{JOBS}/export?format=csv", f"{JOBS}/{UNKNOWN}",
    f"{JOBS}/{UNKNOWN}?wait=1", f"{JOBS}/{UNKNOWN}/events", f"{JOBS}/{UNKNOWN}/trace",
    f"{RUNS}/{UNKNOWN}", f"{RUNS}/{UNKNOWN}/events", "/api/v1/queue", "/api/v1/models", "/readyz",
]  # fmt: skip
PAGES = ["/", "/history", f"/jobs/{UNKNOWN}", f"/runs/{UNKNOWN}", "/queue", "/models"]


def look_everywhere(client: FlaskClient, word: str) -> None:
    """Check that every address that needs the database answers 503 with a word in the detail."""
    for path in READS:
        answer = client.get(path)
        assert answer.status_code == 503, (path, answer.text)
        assert int(answer.headers["Retry-After"]) > 0
        assert word in answer.text, path
    for path in (JOBS, RUNS):
        body: dict[str, Any] = {"prompt": "a"} | ({"variants": [{}]} if path == RUNS else {})
        assert word in problem(client.post(path, json=body), 503)["detail"]
    problem(client.post(f"{JOBS}/{UNKNOWN}/cancel"), 503)
    problem(client.delete(f"{JOBS}/{UNKNOWN}"), 503)
    for path in PAGES:
        answer = client.get(path)
        assert answer.status_code == 503, (path, answer.text)
        assert "text/html" in answer.content_type
        assert word in answer.text, path
    assert client.get("/healthz").status_code == 200
    assert "textmill_database_up 0.0" in client.get("/metrics").text


@pytest.fixture
def broken(make_site: Sites) -> Site:
    site = make_site()
    site.beat()
    site.submit()
    return site


@ONLY_SQLITE
@pytest.mark.parametrize("damage", [b"\0", b"not a database, "], ids=["zeros", "words"])
def test_a_damaged_file_is_503_everywhere_until_it_is_restored(
    broken: Site, database_url: str, damage: bytes
) -> None:
    engine = broken.services.store.engine
    with engine.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    file = Path(str(make_url(database_url).database))
    sound = file.read_bytes()
    engine.dispose()
    file.write_bytes((damage * len(sound))[: len(sound)])
    look_everywhere(broken.client, "damaged" if damage != b"\0" else "")
    file.write_bytes(sound)
    assert broken.client.get(JOBS).status_code == 200
    assert broken.submit()["status"] == "queued"


@ONLY_SQLITE
def test_damage_in_the_middle_of_a_file_is_503_too(broken: Site, database_url: str) -> None:
    engine = broken.services.store.engine
    with engine.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    engine.dispose()
    with Path(str(make_url(database_url).database)).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)  # the first page says what kind of file it is: keep it
        file.write(b"\xee" * (size - 4096))
    for path in (JOBS, "/api/v1/queue", "/readyz", "/history"):
        assert broken.client.get(path).status_code == 503, path
    problem(broken.client.post(JOBS, json={"prompt": "a"}), 503)


@ONLY_SQLITE
def test_a_full_disk_refuses_writes_and_still_shows_what_is_there(broken: Site) -> None:
    engine = broken.services.store.engine

    def limit(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # as many as there are already, at least

    event.listen(engine, "connect", limit)
    engine.dispose()
    document = problem(broken.client.post(JOBS, json={"prompt": "x" * 60_000}), 503)
    assert document["code"] == "storage_refused"
    assert "full" in document["detail"]
    assert broken.client.get(JOBS).status_code == 200
    event.remove(engine, "connect", limit)
    engine.dispose()
    assert broken.submit()["status"] == "queued"


def test_a_schema_that_was_not_migrated_is_503_everywhere_and_says_what_to_run(
    broken: Site,
) -> None:
    engine = broken.services.store.engine
    is_sqlite = engine.dialect.name == "sqlite"
    broken.services.models._served_until = 0.0
    with engine.connect() as connection:
        for table in ("job_traces", "jobs", "runs", "workers", "model_cards", "job_events"):
            cascade = "" if is_sqlite else " CASCADE"
            connection.execute(text(f"DROP TABLE {table}{cascade}"))
        connection.commit()
    look_everywhere(broken.client, "textmill migrate")


def test_a_server_that_ends_all_connections_is_503_or_answers(broken: Site) -> None:
    engine = broken.services.store.engine
    if engine.dialect.name == "sqlite":
        pytest.skip("a file has no connections to end")
    assert broken.client.get(JOBS).status_code == 200

    def end_it(connection: object, cursor: object, *_: object) -> None:
        event.remove(engine, "before_cursor_execute", end_it)
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")  # type: ignore[attr-defined]

    event.listen(engine, "before_cursor_execute", end_it)
    problem(broken.client.get(JOBS), 503)
    assert broken.client.get(JOBS).status_code == 200


@pytest.mark.parametrize(
    ("value", "kinds"),
    [("\0", ["postgresql"]), ("x" * 40, ["postgresql"]), ("\ud800", ["sqlite", "postgresql"])],
    ids=["NUL", "too long", "surrogate"],
)
def test_an_unstorable_value_that_passed_all_checks_is_422(
    site: Site, value: str, kinds: list[str]
) -> None:
    """SQLite stores NUL, and does not enforce lengths."""
    site.submit()
    engine = site.services.store.engine
    if engine.dialect.name not in kinds:
        pytest.skip("this database takes it")
    with reading(engine) as connection:
        before = connection.execute(JOBS_TABLE.select()).all()
    with pytest.raises(Unstorable), writing(engine) as connection:
        connection.execute(JOBS_TABLE.update().values(id=value))
    with reading(engine) as connection:
        assert connection.execute(JOBS_TABLE.select()).all() == before


def test_a_number_too_large_and_a_violated_constraint_are_422(site: Site) -> None:
    site.submit()
    engine = site.services.store.engine
    with pytest.raises(Unstorable), writing(engine) as connection:
        connection.execute(JOBS_TABLE.update().values(created_at=2**70))
    with pytest.raises(Conflict), writing(engine) as connection:
        connection.execute(JOBS_TABLE.update().values(status="nonsense"))
