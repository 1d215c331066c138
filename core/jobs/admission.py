"""Admission of new jobs: idempotency keys, the queue's limits, and the place in the queue.

Runs inside the transaction of ``core.jobs.store.JobStore.submit``, which documents the guarantees.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, func, insert, select, text

from textmill.core.database.connections import now_ms
from textmill.core.database.tables import IS_ACTIVE, IS_QUEUED, IS_RUNNING, JOBS, Job, Run
from textmill.core.errors import FieldError, QueueFull, RateLimited, ValidationFailed
from textmill.core.jobs.search import search_columns
from textmill.core.jobs.transitions import append_event
from textmill.core.settings import Settings

_SUBMISSION_LOCK = 0x7E_87_11_11  # any constant: the one lock of what counts the queue
# Built once: building a statement costs as much as executing it.
_NUM_QUEUED = select(func.count()).select_from(Job).where(IS_QUEUED)
_INSERT = insert(JOBS).values(
    deadline_at=now_ms() + bindparam("deadline_ms", type_=BigInteger), created_at=now_ms()
)
VIRTUAL_STARTS = select(
    select(func.max(Job.virtual_start))
    .where(IS_ACTIVE, Job.owner_id == bindparam("owner"))
    .scalar_subquery(),
    select(func.min(Job.virtual_start)).where(IS_QUEUED).scalar_subquery(),
    select(func.max(Job.virtual_start)).where(IS_RUNNING).scalar_subquery(),
)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated request, ready to be stored."""

    model: str
    prompt: str
    strategy: str
    parameters: dict[str, Any]
    has_trace: bool = False
    num_prompt_tokens: int | None = None
    variant_index: int | None = None
    sample_index: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The owner of a request, and the idempotency key that identifies a repetition of it."""

    owner_id: str
    idempotency_key: str | None = None
    request_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the queue: queued jobs in all and of one owner (0: no limit), and for how long."""

    max_queued: int = 1000
    max_queued_per_owner: int = 0
    deadline_seconds: float = 86_400.0

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The limits that the settings give, for the web side and the workers alike."""
        return cls(
            max_queued=settings.max_queued,
            max_queued_per_owner=settings.max_queued_per_owner,
            deadline_seconds=settings.deadline_seconds,
        )


def lock_submissions(connection: Connection) -> None:
    """Serialise transactions that count the queue; SQLite's BEGIN IMMEDIATE already does."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SUBMISSION_LOCK})


def known_request(
    connection: Connection, table: type[Job] | type[Run], origin: Origin
) -> str | None:
    """The id of the job or run that an earlier request with the same key created.

    Raises:
        ValidationFailed: the key was used with another body.
    """
    if origin.idempotency_key is None:
        return None
    row = connection.execute(
        select(table.id, table.request_hash).where(
            table.owner_id == origin.owner_id,
            table.idempotency_key == origin.idempotency_key,
        )
    ).first()
    if row is None:
        return None
    if row.request_hash != origin.request_hash:
        message = "this key was used with another body; use a new key for a new request"
        raise ValidationFailed([FieldError("Idempotency-Key", message)])
    return str(row.id)


def check_room(connection: Connection, owner_id: str, num_new: int, limits: Limits) -> None:
    """Refuse new jobs beyond the queue's limits.

    Raises:
        QueueFull: more than ``max_queued`` jobs would be queued.
        RateLimited: this owner would have too many queued jobs.
    """
    if connection.execute(_NUM_QUEUED).scalar_one() + num_new > limits.max_queued:
        raise QueueFull(
            f"The queue is full ({limits.max_queued} jobs); try again later.",
            retry_after_seconds=5,
        )
    if not limits.max_queued_per_owner:
        return
    own = connection.execute(_NUM_QUEUED.where(Job.owner_id == owner_id)).scalar_one()
    if own + num_new > limits.max_queued_per_owner:
        raise RateLimited(
            f"You have {own} queued jobs and may have {limits.max_queued_per_owner};"
            " wait until some of them have started.",
            retry_after_seconds=5,
        )


def insert_queued(
    connection: Connection,
    jobs: Sequence[NewJob],
    origin: Origin,
    run_id: str | None,
    limits: Limits,
) -> list[str]:
    """Insert the rows and their first events; returns the jobs' ids in order."""
    virtual_start = _next_virtual_start(connection, origin.owner_id)
    ids = []
    for offset, new in enumerate(jobs):
        job_id = str(uuid.uuid4())
        row = {
            "id": job_id,
            "run_id": run_id,
            "variant_index": new.variant_index,
            "sample_index": new.sample_index,
            "owner_id": origin.owner_id,
            "idempotency_key": origin.idempotency_key,
            "request_hash": origin.request_hash,
            "model": new.model,
            "prompt": new.prompt,
            "strategy": new.strategy,
            "parameters": new.parameters,
            "has_trace": new.has_trace,
            "status": "queued",
            "virtual_start": virtual_start + offset,
            "attempt": 0,
            "lost_count": 0,
            "not_before": 0,
            "deadline_ms": int(limits.deadline_seconds * 1000),
            "text": "",
            **search_columns(new.prompt),
            "num_prompt_tokens": new.num_prompt_tokens,
            "num_completion_tokens": 0,
        }
        connection.execute(_INSERT, row)
        append_event(connection, job_id, 0, None, "queued", "web")
        ids.append(job_id)
    return ids


def _next_virtual_start(connection: Connection, owner_id: str) -> int:
    """The virtual start of an owner's next job.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996) with equal weights: one more than the
    virtual start of the owner's last active job, and not less than that of the first queued job.
    An owner with five hundred jobs and one with a single job take turns.
    """
    own, head, running = connection.execute(VIRTUAL_STARTS, {"owner": owner_id}).one()
    virtual_time = head - 1 if head is not None else (running or 0)
    return max(virtual_time, own or 0) + 1
