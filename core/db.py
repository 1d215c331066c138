"""Engines and transactions: what SQLite and PostgreSQL each need.

SQLite: WAL, synchronous FULL, and every writing transaction opened with BEGIN IMMEDIATE, because a
read that later writes is refused at once whatever ``busy_timeout`` says. PostgreSQL: connect,
statement and lock time-outs, and connections tried before use.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql.functions import FunctionElement

from core.errors import SettingsError, StorageUnavailable

BUSY_TIMEOUT_MS = 5_000  # longer than any of our transactions takes; beyond it something is wrong
CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_MS = 15_000
LOCK_TIMEOUT_MS = 5_000
_WRITES = "textmill_writes"
_LOCK = "textmill_write_lock"


class now_ms(FunctionElement[int]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock in whole milliseconds since 1970, within a transaction too."""

    type = BigInteger()
    inherit_cache = True
    name = "now_ms"


@compiles(now_ms, "sqlite")
def _now_on_sqlite(element: object, compiler: object, **kw: Any) -> str:
    # unixepoch('subsec') would be shorter but needs SQLite 3.42.
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_on_postgresql(element: object, compiler: object, **kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def make_engine(database_url: str, *, pool_size: int = 16) -> Engine:
    """An engine for either database. Opens no connection yet.

    Raises:
        SettingsError: the SQLite file's folder cannot be made.
    """
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        _make_folder(url.database or "")
        engine = create_engine(
            url,
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=pool_size,
            connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
            execution_options={_LOCK: threading.Lock()},
        )
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        return engine
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
            f" -c lock_timeout={LOCK_TIMEOUT_MS} -c timezone=UTC",
        },
    )


def _make_folder(file: str) -> None:
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The database's folder {Path(file).parent} cannot be made: {error.strerror}."
        ) from error


def _on_sqlite_connect(connection: sqlite3.Connection, record: object) -> None:
    # The driver's own transaction handling is off: _on_sqlite_begin says BEGIN.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_sqlite_begin(connection: Connection) -> None:
    if not connection.get_execution_options().get(_WRITES, False):
        connection.exec_driver_sql("BEGIN")
        return
    raw = connection.connection.dbapi_connection
    if isinstance(raw, sqlite3.Connection) and _begin_fairly(raw):
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # raises what SQLAlchemy makes of it


def _begin_fairly(raw: sqlite3.Connection) -> bool:
    """Take the write lock, with the same chance as everybody who wants it.

    SQLite's own busy handler sleeps longer and longer, up to 100 ms, while those who come later
    try at once: under sixteen writers the oldest one may starve until its time is up. Here all try
    every few milliseconds.
    """
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        while True:
            try:
                raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or time.monotonic() > deadline:
                    return False
                time.sleep(random.uniform(0.001, 0.004))  # noqa: S311 - spreads the tries
            else:
                return True
    finally:
        raw.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; committed at the end, rolled back on an error.

    Raises:
        StorageUnavailable: the database is away or stayed locked.
    """
    with (
        _translated(),
        _turn(engine),
        engine.connect().execution_options(**{_WRITES: True}) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """Wait in line for SQLite's one write lock, among the threads of this process.

    SQLite's own waiting is sleeping and trying again: with many threads the unlucky ones sleep
    through every gap until their time is up.
    """
    lock: threading.Lock | None = engine.get_execution_options().get(_LOCK)
    if lock is None:
        yield
        return
    if not lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
        raise StorageUnavailable(
            "The database is busy; try again in a moment.", retry_after_seconds=2
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads.

    Raises:
        StorageUnavailable: the database is away.
    """
    with _translated(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise StorageUnavailable(
            "The database cannot be reached or is busy; try again in a moment.",
            retry_after_seconds=2,
        ) from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise StorageUnavailable(
            "The connection to the database was lost; try again in a moment.",
            retry_after_seconds=2,
        ) from error
    except PoolTimeoutError as error:
        raise StorageUnavailable(
            "Too many requests wait for the database; try again in a moment.",
            retry_after_seconds=2,
        ) from error
