"""Engines and transactions on SQLite and PostgreSQL.

SQLite: WAL, synchronous FULL, and every writing transaction opened with BEGIN IMMEDIATE, because a
read that later writes is refused at once whatever ``busy_timeout`` says. PostgreSQL: see
``core.database.postgresql``. On both, a transaction ends within the engine's patience or before the
deadline of the current request, whichever is sooner.
"""

from __future__ import annotations

import math
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psycopg
from sqlalchemy import BigInteger, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql.functions import FunctionElement

from textmill.core.circuit_breaker import CircuitBreaker
from textmill.core.database.deadlines import remaining_seconds, within
from textmill.core.database.errors import (
    TEMPORARY_RETRY_SECONDS,
    Complaints,
    Kind,
    understand,
)
from textmill.core.database.postgresql import make_postgresql_engine
from textmill.core.errors import SettingsError, StorageUnavailable, Unstorable

SQLITE_KEPT_CONNECTIONS = 4  # in the pool; more are opened under load
PATIENCE_SECONDS = 5.0  # longer than any transaction of the product takes
REQUEST_SECONDS = 4.0  # limit of a request's database work, so that it ends within 5 s in all
HANGS_SECONDS = 1.9  # after this silence the server counts as hanging; connecting takes 2 s at most
BREAK_SECONDS = 1.0  # in which no other caller waits for a database that hangs
_WRITES = "textmill_writes"
_GATE = "textmill_gate"


@dataclass(frozen=True, slots=True)
class _Gate:
    """The limits that all threads of a process share for one database.

    Attributes:
        patience_seconds: how long a transaction may take, its wait for a connection included.
        slots: one per possible connection, so that a wait for a connection ends at the deadline.
        turn: the lock in front of SQLite's one write lock; ``None`` on PostgreSQL.
        reads, writes: breakers; the same one on PostgreSQL, where a hanging server answers
            neither. On SQLite readers go on while another program holds the write lock.
        hanging: the kinds of error that, after a long wait, open the breaker.
        complaints: limits the log lines about errors.
    """

    patience_seconds: float
    slots: threading.BoundedSemaphore
    turn: threading.Lock | None
    reads: CircuitBreaker
    writes: CircuitBreaker
    hanging: frozenset[Kind]
    complaints: Complaints = field(default_factory=Complaints)


class now_ms(FunctionElement[int]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock in whole milliseconds since 1970; it advances within a transaction."""

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


def make_engine(
    database_url: str, *, pool_size: int = 16, patience_seconds: float | None = PATIENCE_SECONDS
) -> Engine:
    """An engine for either database. Opens no connection yet.

    Args:
        database_url: as in the settings.
        pool_size: connections that are kept open; as many again are opened under load.
        patience_seconds: time limit of a transaction; ``None``: no limit, for migrations.

    Raises:
        SettingsError: the SQLite file's folder cannot be created.
    """
    url = make_url(database_url)
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        engine = _make_sqlite_engine(url.database or "", url, pool_size)
    else:
        engine = make_postgresql_engine(url, pool_size, patience_seconds)
    reads = CircuitBreaker(BREAK_SECONDS)
    gate = _Gate(
        patience_seconds=math.inf if patience_seconds is None else patience_seconds,
        slots=threading.BoundedSemaphore(2 * pool_size),
        turn=threading.Lock() if is_sqlite else None,
        reads=reads,
        writes=CircuitBreaker(BREAK_SECONDS) if is_sqlite else reads,
        hanging=frozenset({Kind.BUSY} if is_sqlite else {Kind.NO_ANSWER}),
    )
    return engine.execution_options(**{_GATE: gate})


def _make_sqlite_engine(file: str, url: Any, pool_size: int) -> Engine:
    _make_folder(file)
    engine = create_engine(
        url,
        poolclass=QueuePool,
        # A connection has three open files and fills a page cache of 2 MiB, and takes a fraction of
        # a millisecond to open: the few that one busy moment more needed are closed again.
        pool_size=min(pool_size, SQLITE_KEPT_CONNECTIONS),
        max_overflow=2 * pool_size - min(pool_size, SQLITE_KEPT_CONNECTIONS),
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={"timeout": PATIENCE_SECONDS, "check_same_thread": False},
    )
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _make_folder(file: str) -> None:
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The database's folder {Path(file).parent} cannot be created: {error.strerror}."
        ) from error


def _on_sqlite_connect(connection: sqlite3.Connection, record: object) -> None:
    # Turns off the driver's own transactions: _on_sqlite_begin executes BEGIN.
    connection.isolation_level = None
    _set_busy_timeout(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_sqlite_begin(connection: Connection) -> None:
    raw = cast("sqlite3.Connection", connection.connection.dbapi_connection)
    _set_busy_timeout(raw)
    if not connection.get_execution_options().get(_WRITES, False):
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


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; committed at the end, rolled back on an error.

    Raises:
        StorageUnavailable: the database is unreachable, stayed locked, or refused.
        Unstorable, Conflict: it cannot store a value.
    """
    gate = _gate_of(engine)
    with (
        _answered(engine, gate, gate.writes),
        _turn(gate),
        engine.connect().execution_options(**{_WRITES: True}) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads.

    Raises:
        StorageUnavailable: the database is unreachable or refused.
    """
    gate = _gate_of(engine)
    with (
        _answered(engine, gate, gate.reads),
        engine.connect() as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def connecting(engine: Engine) -> Iterator[Connection]:
    """A connection that begins and ends its transactions itself, as migrations do.

    Raises:
        StorageUnavailable: the database is unreachable or refused.
    """
    gate = _gate_of(engine)
    with _answered(engine, gate, gate.writes), engine.connect() as connection:
        yield connection


def _gate_of(engine: Engine) -> _Gate:
    gate: _Gate = engine.get_execution_options()[_GATE]
    return gate


@contextmanager
def _answered(engine: Engine, gate: _Gate, breaker: CircuitBreaker) -> Iterator[None]:
    """Run a transaction within its time limit, and convert errors to those of ``core.errors``."""
    if not breaker.may_call():
        raise _unavailable("The database did not answer a moment ago; try again in a moment.")
    started = time.monotonic()
    try:
        with within(gate.patience_seconds), _slot(gate):
            started = time.monotonic()
            yield
    except (SQLAlchemyError, sqlite3.Error, psycopg.Error) as error:
        problem = understand(error)
        if problem is None:  # incorrect use of SQLAlchemy
            raise
        gate.complaints.complain(problem.kind, error)
        if problem.kind in gate.hanging and time.monotonic() - started >= HANGS_SECONDS:
            breaker.note_failure()
        elif problem.is_stale:
            engine.dispose()  # the file or the server may have been replaced
        raise problem.error from error
    except (UnicodeError, OverflowError) as error:  # from a driver that cannot send a value
        raise Unstorable("A value of this request cannot be stored.") from error
    except StorageUnavailable:  # no connection or no turn: says nothing about the database
        raise
    except BaseException:  # from the caller, after an answer
        breaker.note_success()
        raise
    breaker.note_success()


def _slot(gate: _Gate) -> AbstractContextManager[None]:
    return _held(
        gate.slots, "Too many requests are waiting for the database; try again in a moment."
    )


def _turn(gate: _Gate) -> AbstractContextManager[None]:
    """Wait for SQLite's one write lock in the order of this process's threads.

    SQLite waits by sleeping and trying again: with many threads, some would sleep through every gap
    until their time is up.
    """
    if gate.turn is None:
        return nullcontext()
    return _held(gate.turn, "The database is busy; try again in a moment.")


@contextmanager
def _held(lock: threading.Lock | threading.Semaphore, complaint: str) -> Iterator[None]:
    """Hold a lock; raises StorageUnavailable if it is not free before the deadline."""
    if not acquire_in_time(lock):
        raise _unavailable(complaint)
    try:
        yield
    finally:
        lock.release()


def acquire_in_time(lock: threading.Lock | threading.Semaphore) -> bool:
    """Acquire a lock before the current deadline; returns whether it was acquired."""
    left = remaining_seconds()
    return lock.acquire(timeout=-1 if left == math.inf else left)


def _unavailable(sentence: str) -> StorageUnavailable:
    return StorageUnavailable(sentence, retry_after_seconds=TEMPORARY_RETRY_SECONDS)
