"""``textmill migrate``: brings the database to the newest schema, and waits while it is locked."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable

import click

from textmill.cli.exits import CommandFailed
from textmill.core.settings import Settings

_LOOK_SECONDS = 1.0  # one try for SQLite's lock
_SAY_SECONDS = 4.0  # between two lines on what is waited for
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's name for a lock that another session kept


def run_migrate(settings: Settings) -> None:
    """Migrate, and clear away what dead workers of this machine left.

    A lock passes: another program copies the file, or a migration runs elsewhere. So there is no
    limit to this wait; a signal ends it.

    Raises:
        CommandFailed: the database cannot be migrated.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from textmill.core.errors import StorageUnavailable

    patience = _Patience(settings)
    while True:
        patience.await_sqlite()
        try:
            _migrate(settings, patience.say)
        except (SQLAlchemyError, StorageUnavailable) as error:
            cause = error.__cause__ if isinstance(error, StorageUnavailable) else error
            original = getattr(cause, "orig", None) or cause or error
            if not _is_lock(original):
                reason = " ".join(str(original).split())
                raise CommandFailed(
                    f"The database cannot be migrated; look at TEXTMILL_DATABASE_URL. {reason}"
                ) from None
            patience.say()
        else:
            return


class _Patience:
    """Waits for a lock, and says so now and then."""

    def __init__(self, settings: Settings) -> None:
        from sqlalchemy import make_url

        self._file = make_url(settings.database_url).database if settings.is_sqlite else None
        self._said_at: float | None = None
        self._since = time.monotonic()

    def await_sqlite(self) -> None:
        """Wait until SQLite's lock could be had; anything else is the migration's business."""
        while self._file and os.path.isfile(self._file):
            connection = sqlite3.connect(self._file, timeout=_LOOK_SECONDS, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                if not _is_lock(error):
                    return
                self.say()
            else:
                return
            finally:
                connection.close()

    def say(self) -> None:
        """Say what is waited for, unless that was said a moment ago."""
        now = time.monotonic()
        if self._said_at is not None and now - self._said_at < _SAY_SECONDS:
            return
        self._said_at = now
        subject = f"The database file {self._file}" if self._file else "The database"
        click.echo(
            f"{subject} is locked by another program; waiting until it is free"
            f" ({now - self._since:.0f} s so far)."
        )


def _migrate(settings: Settings, on_wait: Callable[[], None]) -> None:
    from textmill.core.database.connections import make_engine
    from textmill.core.dead_workers import recover_all_workers
    from textmill.core.jobs.store import JobStore
    from textmill.core.workers import forget_dead, worker_host
    from textmill.migrations.upgrade import upgrade

    upgrade(settings.database_url, on_wait=on_wait)
    engine = make_engine(settings.database_url, pool_size=1)
    try:
        recover_all_workers(JobStore(engine), settings.home, f"start:{worker_host()}")
        forget_dead(engine, worker_host())
    finally:
        engine.dispose()


def _is_lock(original: object) -> bool:
    """Whether somebody else holds the database, so that the same attempt may succeed later."""
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(original, "sqlstate", None) == _LOCK_NOT_AVAILABLE
