"""The migrations on both databases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic import command
from sqlalchemy import inspect

from core.db import make_engine, writing
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


def test_two_processes_may_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    code = f"from migrations.upgrade import upgrade; upgrade({url!r})"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert is_at_head(url)
