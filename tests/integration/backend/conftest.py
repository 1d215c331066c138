"""The application on each database with a real Redis; the tests act as the worker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from werkzeug.test import TestResponse

from tests.conftest import _execute, _with_database
from tests.servers import RedisServer
from textmill.backend.app import create_app
from textmill.backend.services.container import Services
from textmill.core.catalog.served_models import ServedModel, store_served_model
from textmill.core.database.connections import reading
from textmill.core.database.tables import Job, Run
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import Outcome, Progress
from textmill.core.settings import Settings
from textmill.core.workers import WorkerState, beat
from textmill.migrations.upgrade import upgrade

JOBS = "/api/v1/jobs"
RUNS = "/api/v1/runs"
CONTEXT_LENGTH = 128
VOCABULARY_SIZE = 100


@dataclass
class Site:
    """An application, and shortcuts for tests."""

    app: Flask
    client: FlaskClient
    services: Services

    def submit(self, prompt: str = "a quick zebra", **body: Any) -> dict[str, Any]:
        answer = self.client.post(JOBS, json={"prompt": prompt, **body})
        assert answer.status_code == 202, answer.text
        return dict(answer.get_json())

    def claim(self) -> JobRecord:
        job = self.services.store.claim("w1", ["tiny", "other"])
        assert job is not None
        return job

    def save(self, job: JobRecord, text: str) -> None:
        self.services.store.save_progress("w1", [Progress(job.id, job.attempt, text, 1)])

    def finish(self, job: JobRecord, text: str = " done", **values: Any) -> None:
        outcome = Outcome("succeeded", text, "length", 3, 1, **values)
        assert self.services.store.finish(job, outcome)

    def write(self, prompt: str, text: str, **body: Any) -> dict[str, Any]:
        """Submit, claim and finish a job."""
        made = self.submit(prompt, **body)
        self.finish(self.claim(), text)
        return made

    def beat(self, **values: Any) -> None:
        state = {"id": "w1", "models": ["tiny"], "num_slots": 2, "num_active": 0}
        beat(self.services.store.engine, WorkerState(**{**state, **values}, tokens_per_second=5.0))

    def count_rows(self) -> tuple[int, int]:
        with reading(self.services.store.engine) as connection:
            jobs, runs = (
                connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (Job, Run)
            )
        return jobs, runs


def tokenizer_json() -> str:
    words = {word: number for number, word in enumerate(["[UNK]", "a", "quick", "zebra", "w"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return str(tokenizer.to_str())


def problem(answer: TestResponse, status: int) -> dict[str, Any]:
    """Return the problem document of a response, after checking it against RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    document: dict[str, Any] = json.loads(answer.get_data())
    assert document["status"] == status
    assert document["type"].startswith("urn:")
    assert document["title"]
    assert document["detail"]
    if status in {429, 503}:
        assert int(answer.headers["Retry-After"]) > 0
    return document


def bad_fields(answer: TestResponse) -> set[str]:
    errors = problem(answer, 422)["errors"]
    assert all(error["message"] for error in errors)
    return {error["field"] for error in errors}


def parse_events(text: str) -> list[tuple[str, str, Any]]:
    """Return (id, name, data) of each event."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[:1].isalpha())
        if "event" in lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


class Sites:
    """Makes sites on one database and one Redis, and closes them."""

    def __init__(self, database_url: str, redis_url: str, folder: Path) -> None:
        self._urls = {
            "TEXTMILL_DATABASE_URL": database_url,
            "TEXTMILL_REDIS_URL": redis_url,
            "TEXTMILL_REQUESTS_PER_MINUTE": "0",  # all tests have the same address and Redis
        }
        self._folder = folder
        self._made: list[Site] = []

    def __call__(self, *, has_card: bool = True, **environment: str) -> Site:
        models = self._folder / "models.toml"
        models.write_text(
            '[[models]]\nname = "tiny"\nsource = "org/tiny"\ndefault = true\n'
            '[[models]]\nname = "other"\nsource = "org/other"\n'
        )
        places = {"TEXTMILL_HOME": str(self._folder / "home"), "TEXTMILL_MODELS": str(models)}
        app = create_app(Settings.from_environment({**places, **self._urls, **environment}))
        services: Services = app.extensions["textmill"]
        if has_card:
            card = ServedModel(
                "tiny", "r1", "llama", "native", 1_000, CONTEXT_LENGTH, VOCABULARY_SIZE,
                "float32", tokenizer_json(),
            )  # fmt: skip
            store_served_model(services.store.engine, card)
        self._made.append(Site(app, app.test_client(), services))
        return self._made[-1]

    def close(self) -> None:
        for site in self._made:
            site.services.close()


@pytest.fixture
def make_site(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Sites]:
    sites = Sites(database_url, redis_url, tmp_path)
    yield sites
    sites.close()


@pytest.fixture
def site(make_site: Sites) -> Site:
    """A site of the test's own, on each of the two databases in turn."""
    return make_site()


@pytest.fixture
def client(site: Site) -> FlaskClient:
    return site.client


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_site(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """One site for all tests of a module, which leave no state behind."""
    folder = tmp_path_factory.mktemp("site")
    url, drop = f"sqlite:///{folder}/textmill.db", ""
    if request.param == "sqlite":
        upgrade(url)
    else:
        server, template = request.getfixturevalue("postgres_template")
        name = f"test_{uuid.uuid4().hex[:12]}"
        _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
        url, drop = _with_database(server, name), f"DROP DATABASE {name} WITH (FORCE)"
    sites = Sites(url, redis_server.url, folder)
    yield sites()
    sites.close()
    if drop:
        _execute(server, drop)
