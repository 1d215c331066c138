"""The database, for commands that use it themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from textmill.cli.exits import CommandFailed
from textmill.core.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


@contextmanager
def opened_database() -> Iterator[Engine]:
    """The database of the settings; a SQLite file that is missing is created.

    Raises:
        CommandFailed: it has another schema.
        SettingsError: a setting is invalid.
    """
    from textmill.cli.migrate import run_migrate
    from textmill.core.database.connections import make_engine
    from textmill.migrations.upgrade import is_at_head

    settings = Settings.from_environment(os.environ)
    if settings.sqlite_file is not None and not settings.sqlite_file.exists():
        run_migrate(settings)
    if not is_at_head(settings.database_url):
        raise CommandFailed("The database has another schema; run `textmill migrate` first.")
    engine = make_engine(settings.database_url, pool_size=1)
    try:
        yield engine
    finally:
        engine.dispose()
