"""Runs the migrations from code: ``textmill migrate`` and ``textmill up`` call this.

On SQLite all migrations run in one transaction under the file's write lock. On PostgreSQL each is
a separate transaction without a time limit, while jobs are submitted and run: a statement that does
not get its lock quickly gives up, because later statements would wait behind it, and the migration
is tried again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from textmill.core.database.connections import connecting, make_engine, reading, writing
from textmill.core.errors import StorageUnavailable

LOCK_MS = 1_000  # the longest that writers wait behind a migration that waits for a lock
LOCK_TRIES_SECONDS = 30.0  # then the caller gets an error, and may try again
_LOCK_NOT_AVAILABLE = "55P03"
_MIGRATION_LOCK = 0x7E_87_11_12  # two processes that start together must not both migrate
_LOOK_SECONDS = 0.2  # between two checks whether another process has finished migrating
_FOLDER = Path(__file__).parent
log = structlog.get_logger(__name__)


def alembic_config(database_url: str, more_versions: Sequence[Path] = ()) -> Config:
    """Alembic's configuration for one database; there is no alembic.ini.

    Args:
        database_url: as in the settings.
        more_versions: folders of further migrations, for tests.
    """
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "newline")
    folders = [_FOLDER / "versions", *more_versions]
    config.set_main_option("version_locations", "\n".join(map(str, folders)))
    config.attributes["database_url"] = database_url
    return config


def upgrade(
    database_url: str,
    more_versions: Sequence[Path] = (),
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Upgrade the database to the current schema; does nothing if it is current.

    Args:
        database_url: as in the settings.
        more_versions: folders of further migrations, for tests.
        on_wait: called repeatedly while another process migrates the same database.

    Raises:
        StorageUnavailable: the database is unreachable, or a required lock was never free.
    """
    config = alembic_config(database_url, more_versions)
    if database_url.startswith("sqlite"):
        engine = make_engine(database_url, pool_size=1)
        try:
            with writing(engine) as connection:
                _upgrade(config, connection)
        finally:
            engine.dispose()
        return
    engine = make_engine(database_url, pool_size=1, patience_seconds=None)
    try:
        with _alone(engine, on_wait):
            _upgrade_beside_others(engine, config)
    finally:
        engine.dispose()


def _upgrade_beside_others(engine: Engine, config: Config) -> None:
    deadline = time.monotonic() + LOCK_TRIES_SECONDS
    while True:
        try:
            with connecting(engine) as connection:
                connection.execute(text(f"SET lock_timeout = {LOCK_MS}"))
                connection.commit()
                _upgrade(config, connection)
        except StorageUnavailable as error:
            if not _wants_a_lock(error) or time.monotonic() > deadline:
                raise
            log.warning("migration_waits", reason="a table is locked; trying again")
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311 - lets waiting writers go first
        else:
            return


@contextmanager
def _alone(engine: Engine, on_wait: Callable[[], None]) -> Iterator[None]:
    """Exclude other processes that migrate.

    The lock belongs to the session and is requested without waiting: a session that waits inside a
    transaction would block CREATE INDEX CONCURRENTLY.
    """
    with connecting(engine) as connection:
        session = connection.execution_options(isolation_level="AUTOCOMMIT")
        key = {"key": _MIGRATION_LOCK}
        while not session.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one():
            on_wait()
            time.sleep(_LOOK_SECONDS)
        try:
            yield
        finally:
            session.execute(text("SELECT pg_advisory_unlock(:key)"), key)


def _upgrade(config: Config, connection: Connection) -> None:
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _wants_a_lock(error: StorageUnavailable) -> bool:
    original = getattr(error.__cause__, "orig", None)
    return getattr(original, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def is_at_head(database_url: str) -> bool:
    """Whether the database has the current schema."""
    engine = make_engine(database_url, pool_size=1)
    try:
        with reading(engine) as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return current == ScriptDirectory(str(_FOLDER)).get_current_head()
