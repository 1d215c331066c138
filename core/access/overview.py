"""Owners with what they have stored and waiting, for admins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, case, func, select

from textmill.core.database.connections import reading
from textmill.core.database.tables import IS_QUEUED, IS_RUNNING, Job


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """An owner.

    Attributes:
        owner_id: ``visitor:…``, ``key:…``, ``user:…``, or that of a client in the mode ``local``.
        address_id: the keyed hash of its latest job's address; ``None`` except for visitors.
        num_jobs, num_queued, num_running: its jobs.
        num_characters: of its prompts and texts.
        latest_at: when its latest job was submitted, in milliseconds.
    """

    owner_id: str
    address_id: str | None
    num_jobs: int
    num_queued: int
    num_running: int
    num_characters: int
    latest_at: int


def owners(engine: Engine, limit: int) -> Sequence[OwnerRecord]:
    """The owners with most jobs in the queue, then those with most stored; reads all jobs."""
    num_queued = func.sum(case((IS_QUEUED, 1), else_=0)).label("num_queued")
    num_characters = func.sum(func.length(Job.prompt) + func.length(Job.text)).label(
        "num_characters"
    )
    query = (
        select(
            Job.owner_id,
            func.max(Job.address_id).label("address_id"),
            func.count().label("num_jobs"),
            num_queued,
            func.sum(case((IS_RUNNING, 1), else_=0)).label("num_running"),
            num_characters,
            func.max(Job.created_at).label("latest_at"),
        )
        .group_by(Job.owner_id)
        .order_by(num_queued.desc(), num_characters.desc())
        .limit(limit)
    )
    with reading(engine) as connection:
        return [OwnerRecord(**row._mapping) for row in connection.execute(query)]
