"""How connections of the pool are used."""

from __future__ import annotations

from sqlalchemy import Engine, event

from textmill.core.database.connections import reading


def test_one_caller_after_another_uses_one_connection(database: Engine) -> None:
    """A connection in use fills caches of its own: in turn, all of the pool would."""
    with reading(database) as first, reading(database) as second, reading(database) as third:
        for connection in (first, second, third):
            connection.exec_driver_sql("SELECT 1")
    used: set[int] = set()
    event.listen(database, "checkout", lambda raw, *_: used.add(id(raw)))
    for _ in range(6):
        with reading(database) as connection:
            connection.exec_driver_sql("SELECT 1")
    assert len(used) == 1
