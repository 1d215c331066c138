"""The migrations on both databases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect

from core.db import make_engine, writing
from core.history import Filters, History
from core.jobs import JobStore, NewJob, Origin
from migrations.upgrade import alembic_config, is_at_head, upgrade


def test_the_models_and_the_migrated_schema_agree(database_url: str) -> None:
    engine = make_engine(database_url)
    with writing(engine) as connection:
        config = alembic_config(database_url)
        config.attributes["connection"] = connection
        command.check(config)
    engine.dispose()


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    upgrade(database_url)
    assert is_at_head(database_url)


def test_downgrading_leaves_no_table_behind(database_url: str) -> None:
    engine = make_engine(database_url)
    with writing(engine) as connection:
        config = alembic_config(database_url)
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    tables = set(inspect(engine).get_table_names())
    engine.dispose()
    assert tables <= {"alembic_version"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_start_together_may_all_migrate(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
        _downgrade(url)
    code = f"from migrations.upgrade import upgrade; upgrade({url!r})"
    all_ = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in all_] == [0, 0, 0]
    assert is_at_head(url)


def test_the_way_down_and_up_again_leaves_a_database_that_works(database_url: str) -> None:
    _downgrade(database_url)
    assert not is_at_head(database_url)
    upgrade(database_url)
    engine = make_engine(database_url)
    job = JobStore(engine).submit(NewJob("m", "wonderful", "greedy", {}), Origin("anna"))
    found = History(engine).page(Filters(query="wonderful")).items
    engine.dispose()
    assert [item.id for item in found] == [job.id]


def _downgrade(url: str) -> None:
    engine = make_engine(url)
    with writing(engine) as connection:
        config = alembic_config(url)
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    engine.dispose()
