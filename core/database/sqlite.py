"""Connections to SQLite.

WAL, synchronous FULL, and BEGIN IMMEDIATE for every writing transaction, because SQLite refuses a
write after a read at once when another transaction is writing, whatever ``busy_timeout`` is.
"""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import cast

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from textmill.core.database.deadlines import remaining_seconds
from textmill.core.errors import SettingsError

KEPT_CONNECTIONS = 4  # in the pool; more are opened under load
CONNECT_SECONDS = 5.0  # the driver's own wait for a lock, until ``_on_connect`` sets another
WRITES = "textmill_writes"
"""Execution option of a connection whose transactions write."""


def make_sqlite_engine(url: URL, pool_size: int) -> Engine:
    """An engine for a SQLite file; opens no connection yet.

    Args:
        url: its address.
        pool_size: half of the most connections; at most ``KEPT_CONNECTIONS`` are kept open.

    Raises:
        SettingsError: the file's folder cannot be created.
    """
    _make_folder(url.database or "")
    engine = create_engine(
        url,
        poolclass=QueuePool,
        # A connection has three open files and fills a page cache of 2 MiB, and takes a fraction of
        # a millisecond to open: the few that one busy moment more needed are closed again.
        pool_size=min(pool_size, KEPT_CONNECTIONS),
        max_overflow=2 * pool_size - min(pool_size, KEPT_CONNECTIONS),
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={"timeout": CONNECT_SECONDS, "check_same_thread": False},
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _make_folder(file: str) -> None:
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The database's folder {Path(file).parent} cannot be created: {error.strerror}."
        ) from error


def _on_connect(connection: sqlite3.Connection, record: object) -> None:
    # Turns off the driver's own transactions: _on_begin executes BEGIN.
    connection.isolation_level = None
    _set_busy_timeout(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_begin(connection: Connection) -> None:
    raw = cast("sqlite3.Connection", connection.connection.dbapi_connection)
    _set_busy_timeout(raw)
    if not connection.get_execution_options().get(WRITES, False):
        connection.exec_driver_sql("BEGIN")
    elif not _begin_fairly(raw):
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # fails with an error that SQLAlchemy wraps


def _set_busy_timeout(connection: sqlite3.Connection) -> None:
    """Wait for a lock until the deadline; without a deadline, as in a migration, over a day."""
    milliseconds = int(min(remaining_seconds(), 100_000.0) * 1000)
    connection.execute(f"PRAGMA busy_timeout = {milliseconds}")


def _begin_fairly(raw: sqlite3.Connection) -> bool:
    """Acquire the write lock, with the same chance for every process that waits for it.

    SQLite's own busy handler sleeps longer and longer, up to 100 ms, while later processes try at
    once: with sixteen writers the oldest may starve until its time is up. Here all try every few
    milliseconds.
    """
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or not remaining_seconds():
                    return False
                time.sleep(random.uniform(0.001, 0.004))  # noqa: S311 - spreads the tries
            else:
                return True
    finally:
        _set_busy_timeout(raw)
