"""Engines and transactions on SQLite and PostgreSQL.

``core.database.sqlite`` and ``core.database.postgresql`` set up the connections. On both databases,
a transaction ends within the engine's patience or before the deadline of the current request,
whichever is sooner.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import BigInteger, Connection, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
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
from textmill.core.database.sqlite import WRITES, make_sqlite_engine
from textmill.core.errors import StorageUnavailable, Unstorable

PATIENCE_SECONDS = 5.0  # longer than any transaction of the product takes
REQUEST_SECONDS = 4.0  # limit of a request's database work, so that it ends within 5 s in all
HANGS_SECONDS = 1.9  # after this silence the server counts as hanging; connecting takes 2 s at most
BREAK_SECONDS = 1.0  # in which no other caller waits for a database that hangs
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
        engine = make_sqlite_engine(url, pool_size)
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
        engine.connect().execution_options(**{WRITES: True}) as connection,
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
