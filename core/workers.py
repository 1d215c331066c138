"""Worker processes in the database: which were seen lately, and their models.

Knows nothing of leases or jobs (``core.jobs.store``). A worker missing from this table is merely
shown as offline; its jobs are unaffected.
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass

from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import Worker

SEEN_SECONDS = 30.0  # six missed heartbeats, as long as a lease


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker reports at a heartbeat."""

    id: str
    models: list[str]
    num_slots: int
    num_active: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """The last report of a worker; instants are milliseconds by the database's clock."""

    id: str
    models: tuple[str, ...]
    num_slots: int
    num_active: int
    tokens_per_second: float
    started_at: int
    last_seen: int


def beat(engine: Engine, state: WorkerState) -> None:
    """Store a worker's report; its first one sets ``started_at``."""
    fresh = asdict(state) | {"last_seen": now_ms()}
    with writing(engine) as connection:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(
            insert(Worker)
            .values(**fresh, started_at=now_ms())
            .on_conflict_do_update(index_elements=["id"], set_=fresh)
        )


def forget(engine: Engine, worker_id: str) -> None:
    """Delete a worker that has stopped."""
    with writing(engine) as connection:
        connection.execute(delete(Worker).where(Worker.id == worker_id))


def unseen_workers(engine: Engine, seconds: float) -> frozenset[str]:
    """The workers that were not seen for ``seconds``: they died without deleting their row."""
    query = select(Worker.id).where(Worker.last_seen < now_ms() - int(seconds * 1000))
    with reading(engine) as connection:
        return frozenset(connection.execute(query).scalars())


def seen_workers(engine: Engine, within_seconds: float = SEEN_SECONDS) -> list[SeenWorker]:
    """The workers that were seen within the time, the oldest first."""
    query = (
        select(Worker.__table__)
        .where(Worker.last_seen >= now_ms() - int(within_seconds * 1000))
        .order_by(Worker.started_at, Worker.id)
    )
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return [SeenWorker(**{**row._mapping, "models": tuple(row.models)}) for row in rows]


def forget_dead(engine: Engine, host: str) -> None:
    """Delete the workers of this host whose process was killed.

    Otherwise the next start would count as ready, by their last report, before its own worker is.

    Args:
        engine: of the database.
        host: as in the workers' ids, ``HOST-PID-SUFFIX``.
    """
    with reading(engine) as connection:
        ids = list(connection.execute(select(Worker.id)).scalars())
    for worker_id in ids:
        name, _, rest = worker_id.rpartition("-")[0].rpartition("-")
        if name == host and rest.isdigit() and not is_alive(int(rest)):
            forget(engine, worker_id)


def is_alive(pid: int) -> bool:
    """Whether a process of this host has that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def worker_host() -> str:
    """This host's name in the ids of its workers."""
    return socket.gethostname()[:32]
