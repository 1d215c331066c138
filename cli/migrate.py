"""``textmill migrate``: upgrades the database to the current schema, waiting while it is locked."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable

import click

from textmill.cli.exits import CommandFailed
from textmill.core.settings import Settings

_TRY_SECONDS = 1.0  # one attempt to get SQLite's lock
_REPORT_SECONDS = 4.0  # between two messages about the lock
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL: lock_not_available


def run_migrate(settings: Settings) -> None:
    """Upgrade the schema, and return the jobs of this machine's dead workers to the queue.

    A lock is temporary: another program copies the file, or runs a migration. The wait for it
    therefore has no limit; a signal ends it.

    Raises:
        CommandFailed: the database cannot be migrated.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from textmill.core.errors import StorageUnavailable

    waiting = _LockWait(settings)
    while True:
        waiting.await_sqlite()
        try:
            _migrate(settings, waiting.report)
        except (SQLAlchemyError, StorageUnavailable) as error:
            cause = error.__cause__ if isinstance(error, StorageUnavailable) else error
            original = getattr(cause, "orig", None) or cause or error
            if not _is_lock(original):
                reason = " ".join(str(original).split())
                raise CommandFailed(
                    f"The database cannot be migrated; check TEXTMILL_DATABASE_URL. {reason}"
                ) from None
            waiting.report()
        else:
            return


class _LockWait:
    """Waits for a lock, and reports it every few seconds."""

    def __init__(self, settings: Settings) -> None:
        from sqlalchemy import make_url

        self._file = make_url(settings.database_url).database if settings.is_sqlite else None
        self._reported_at: float | None = None
        self._since = time.monotonic()

    def await_sqlite(self) -> None:
        """Wait until SQLite's lock is free; the migration reports every other problem."""
        while self._file and os.path.isfile(self._file):
            connection = sqlite3.connect(self._file, timeout=_TRY_SECONDS, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                if not _is_lock(error):
                    return
                self.report()
            else:
                return
            finally:
                connection.close()

    def report(self) -> None:
        """Report the wait, unless that was done a moment ago."""
        now = time.monotonic()
        if self._reported_at is not None and now - self._reported_at < _REPORT_SECONDS:
            return
        self._reported_at = now
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
    """Whether another program holds a lock, so that the same attempt may succeed later."""
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(original, "sqlstate", None) == _LOCK_NOT_AVAILABLE
