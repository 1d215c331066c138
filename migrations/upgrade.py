"""Runs the migrations from code: ``textmill migrate`` and ``textmill up`` call this."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from core.db import make_engine, reading, writing

_FOLDER = Path(__file__).parent
_MIGRATION_LOCK = 0x7E_87_11_12  # two processes that start together must not both migrate


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for one database; there is no alembic.ini to keep in step."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str) -> None:
    """Bring the database to the newest schema; does nothing when it is there already."""
    config = alembic_config(database_url)
    engine = make_engine(database_url, pool_size=1)
    try:
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def is_at_head(database_url: str) -> bool:
    """Whether the database has the newest schema."""
    engine = make_engine(database_url, pool_size=1)
    try:
        with reading(engine) as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return current == ScriptDirectory(str(_FOLDER)).get_current_head()
