"""Fixtures that every layer of the tests shares."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from tests.oidc_provider import Provider
from tests.servers import RedisServer, running_postgres, running_redis
from textmill.core.database.connections import make_engine
from textmill.core.torch_environment import prepare_for_serving
from textmill.migrations.upgrade import upgrade

prepare_for_serving()  # before PyTorch is loaded, as in the worker

# Files that take half a minute or more. Where several processes share the tests file by file, a
# long file that comes last is waited for by all of them.
LONG_FILES = (
    "tests/acceptance/test_no_job_lost.py",
    "tests/faults/test_sample.py",
    "tests/acceptance/test_unusable_models.py",
    "tests/integration/finetune/test_command.py",
    "tests/integration/worker/test_worker_process.py",
    "tests/acceptance/test_live_models.py",
    "tests/acceptance/test_up.py",
    "tests/acceptance/test_pauses.py",
    "tests/acceptance/test_finetuning_walk.py",
    "tests/acceptance/test_cli_restarts.py",
    "tests/acceptance/test_private_logs.py",
    "tests/unit/engine/models/test_real_model.py",
    "tests/unit/engine/test_texts.py",
    "tests/native/test_sanitized.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files; otherwise the order is kept."""
    ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.nodeid.split("::")[0], len(ranks)))


@pytest.fixture(scope="session")
def running_provider() -> Iterator[Provider]:
    with Provider().running() as provider:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    """An OpenID provider that answers rightly until the test changes it."""
    running_provider.reset()
    return running_provider


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the session; a test that stops it uses ``own_redis``."""
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of the test's own, to stop and start."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[tuple[str, str]]:
    """(address of the server, name of a migrated database to copy)."""
    with running_postgres() as url:
        _execute(url, "CREATE DATABASE textmill_template")
        upgrade(_with_database(url, "textmill_template"))
        yield url, "textmill_template"


@pytest.fixture
def postgres_url(postgres_template: tuple[str, str]) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    url, template = postgres_template
    name = f"test_{uuid.uuid4().hex[:12]}"
    _execute(url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _with_database(url, name)
    _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh, migrated SQLite file."""
    url = f"sqlite:///{tmp_path}/textmill.db"
    upgrade(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each of the two databases in turn."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(name))


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """An engine on each of the two databases in turn."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
