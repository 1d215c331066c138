"""How connections of the pool are used."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, event

from textmill.core.database.connections import reading
from textmill.core.database.sqlite import KEPT_CONNECTIONS


def test_one_caller_after_another_uses_one_connection(database: Engine) -> None:
    """A connection fills its own caches, so using all connections in turn would fill them all."""
    with reading(database) as first, reading(database) as second, reading(database) as third:
        for connection in (first, second, third):
            connection.exec_driver_sql("SELECT 1")
    used: set[int] = set()
    event.listen(database, "checkout", lambda raw, *_: used.add(id(raw)))
    for _ in range(6):
        with reading(database) as connection:
            connection.exec_driver_sql("SELECT 1")
    assert len(used) == 1


def test_sqlite_keeps_few_connections_after_a_busy_moment(database: Engine) -> None:
    if database.dialect.name != "sqlite":
        pytest.skip("opening a connection to PostgreSQL is slow, so they are kept")
    closed: list[int] = []
    event.listen(database, "close", lambda raw, _: closed.append(id(raw)))
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(reading(database)).exec_driver_sql("SELECT 1")
    assert len(closed) == 12 - KEPT_CONNECTIONS
