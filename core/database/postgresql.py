"""Connections to PostgreSQL that never wait longer than the current deadline.

The server's time-outs do not bound the wait for a server that is frozen, or behind a network that
drops packets. Here every wait ends at the deadline of ``core.database.deadlines``, and the
connection is closed, so that the rollback that follows does not wait either. The server's time-outs
are set as well; they end statements that a client has given up.
"""

from __future__ import annotations

import math
import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Engine, create_engine, event

from textmill.core.database.deadlines import remaining_seconds
from textmill.core.database.errors import NoAnswer

CONNECT_SECONDS = 2  # the minimum of psycopg; for each address of the host
LEAST_WAIT_SECONDS = 0.2  # a rollback may take this long after the deadline
LOCK_SHARE = 0.5  # of the patience: a wait for a lock ends before the statement times out
_RESULT = TypeVar("_RESULT")
# A connection that was idle while the network failed is detected after five seconds.
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,
}


class BoundedConnection(psycopg.Connection[Any]):
    """A connection on which every wait ends at the deadline."""

    def wait(
        self, gen: PQGen[_RESULT], interval: float = 0.1, timeout: float | None = None
    ) -> _RESULT:
        """Wait for the server as ``psycopg.Connection.wait``, until the deadline at most.

        Raises:
            NoAnswer: the server did not answer in time; the connection is closed.
        """
        left = max(LEAST_WAIT_SECONDS, remaining_seconds())
        if left == math.inf or (timeout is not None and timeout < left):
            return super().wait(gen, interval, timeout)
        started = time.monotonic()
        try:
            return super().wait(gen, interval, left)
        except psycopg.OperationalError:
            if time.monotonic() - started < left:
                raise  # the server answered, or the connection was lost
        self.close()
        raise NoAnswer("the server did not answer before the deadline")


def make_postgresql_engine(url: URL, pool_size: int, patience_seconds: float | None) -> Engine:
    """An engine for PostgreSQL; without ``patience_seconds`` statements have no time limit."""
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_use_lifo=True,  # few backends in use, with warm caches
        pool_timeout=1,  # core.database.connections admits only as many callers as fit
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": _options(patience_seconds),
            **_KEEPALIVE,
        },
    )
    event.listen(engine, "do_connect", _connect)
    return engine


def _options(patience_seconds: float | None) -> str:
    options = "-c timezone=UTC"
    if patience_seconds is None:
        return options + " -c statement_timeout=0"
    statement_ms = int(patience_seconds * 1000)
    lock_ms = int(statement_ms * LOCK_SHARE)
    return f"{options} -c statement_timeout={statement_ms} -c lock_timeout={lock_ms}"


def _connect(
    _dialect: object, _record: object, arguments: Any, parameters: Any
) -> BoundedConnection:
    if remaining_seconds() < CONNECT_SECONDS:
        raise NoAnswer("too little time is left to connect to the server")
    return BoundedConnection.connect(*arguments, **parameters)
