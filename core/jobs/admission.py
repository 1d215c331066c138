"""Admission of new jobs: idempotency keys, the queue's limits, and the place in the queue.

Runs inside the transaction of ``core.jobs.store.JobStore.submit``, which documents the guarantees.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, func, insert, select, text

from textmill.core.access.budgets import Account
from textmill.core.access.holdings import check_holdings, holdings
from textmill.core.access.usage import charge
from textmill.core.database.connections import now_ms
from textmill.core.database.tables import IS_ACTIVE, IS_QUEUED, IS_RUNNING, JOBS, Job, Run
from textmill.core.errors import FieldError, QueueFull, Quota, RateLimited, ValidationFailed
from textmill.core.jobs.transitions import append_event
from textmill.core.settings import Settings

_SUBMISSION_LOCK = 0x7E_87_11_11  # any constant: the one lock of what counts the queue
# Built once: building a statement costs as much as executing it.
_NUM_QUEUED = select(func.count()).select_from(Job).where(IS_QUEUED)
_INSERT = insert(JOBS).values(
    deadline_at=now_ms() + bindparam("deadline_ms", type_=BigInteger), created_at=now_ms()
)
_HAS_PRIORITY = Job.virtual_start.between(bindparam("low"), bindparam("high"))
VIRTUAL_STARTS = select(
    select(func.max(Job.virtual_start))
    .where(IS_ACTIVE, Job.owner_id == bindparam("owner"), _HAS_PRIORITY)
    .scalar_subquery(),
    select(func.min(Job.virtual_start)).where(IS_QUEUED, _HAS_PRIORITY).scalar_subquery(),
    select(func.max(Job.virtual_start)).where(IS_RUNNING, _HAS_PRIORITY).scalar_subquery(),
)
# Virtual starts of a priority begin at -priority times this, so that their order alone decides.
_PRIORITY_STEP = 1 << 48


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
    deadline_seconds: float | None = None
    price: int = 0
    priority: int = 0
    prompt_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The owner of a request, and the idempotency key that identifies a repetition of it.

    Attributes:
        account: whose budget pays for the request; ``None``: nobody's.
    """

    owner_id: str
    idempotency_key: str | None = None
    request_hash: str | None = None
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the queue: queued jobs in all and of one owner (0: no limit), and for how long."""

    max_queued: int = 1000
    max_queued_per_owner: int = 0
    max_queued_per_model: int = 0
    deadline_seconds: float = 86_400.0

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The limits that the settings give, for the web side and the workers alike."""
        return cls(
            max_queued=settings.max_queued,
            max_queued_per_owner=settings.max_queued_per_owner,
            max_queued_per_model=settings.max_queued_per_model,
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


def check_room(
    connection: Connection, origin: Origin, jobs: Sequence[NewJob], limits: Limits
) -> tuple[Quota, ...]:
    """Refuse new jobs beyond the queue's limits and their owner's budget, and charge the budget.

    A quarter of the queue is kept for owners with nothing waiting, so that those who have much
    waiting never shut the door on the others.

    Returns:
        What is left of the budget.

    Raises:
        QueueFull: the queue has no room for these jobs.
        RateLimited: this owner would have too many jobs, or has ordered too many tokens.
    """
    num_new, account = len(jobs), origin.account
    if account is None or not account.is_limited:
        _check_queue(connection.execute(_NUM_QUEUED).scalar_one(), num_new, limits.max_queued)
        _check_models(connection, jobs, limits)
        _check_owner(connection, origin.owner_id, num_new, limits)
        return ()
    held = holdings(connection, account)
    room = limits.max_queued * 3 // 4 if held.own.num_queued else limits.max_queued
    _check_queue(held.num_queued, num_new, room)
    _check_models(connection, jobs, limits)
    _check_owner(connection, origin.owner_id, num_new, limits)
    check_holdings(held, account, num_new)
    prompt_bytes = sum(len(new.prompt) for new in jobs)
    return charge(connection, account, sum(new.price for new in jobs), prompt_bytes)


def _check_queue(num_queued: int, num_new: int, room: int) -> None:
    if num_queued + num_new > room:
        raise QueueFull(
            f"The queue is full ({num_queued} jobs); try again later.", retry_after_seconds=5
        )


def _check_models(connection: Connection, jobs: Sequence[NewJob], limits: Limits) -> None:
    if not limits.max_queued_per_model:
        return
    for model, num_new in Counter(new.model for new in jobs).items():
        found = connection.execute(_NUM_QUEUED.where(Job.model == model)).scalar_one()
        if found + num_new > limits.max_queued_per_model:
            raise QueueFull(
                f"The queue of the model {model} is full ({found} jobs); try again later, or use"
                " another model.",
                retry_after_seconds=5,
            )


def _check_owner(connection: Connection, owner_id: str, num_new: int, limits: Limits) -> None:
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
    search: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """Insert the rows and their first events; returns the jobs' ids in order.

    ``search`` has the search columns of each prompt. They take a processor's time, so the caller
    computes them before it takes the write lock.
    """
    starts: dict[int, int] = {}  # the next virtual start, by priority
    ids, longest = [], limits.deadline_seconds
    for new in jobs:
        job_id = str(uuid.uuid4())
        if new.priority not in starts:
            starts[new.priority] = _next_virtual_start(connection, origin.owner_id, new.priority)
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
            "prompt_ids": new.prompt_ids,
            "strategy": new.strategy,
            "parameters": new.parameters,
            "has_trace": new.has_trace,
            "status": "queued",
            "priority": new.priority,
            "virtual_start": starts[new.priority],
            "attempt": 0,
            "lost_count": 0,
            "not_before": 0,
            "deadline_ms": int(min(new.deadline_seconds or longest, longest) * 1000),
            "address_id": origin.account.address_id or None if origin.account else None,
            "text": "",
            **search[new.prompt],
            "num_prompt_tokens": new.num_prompt_tokens,
            "num_completion_tokens": 0,
        }
        connection.execute(_INSERT, row)
        append_event(connection, job_id, 0, None, "queued", "web")
        starts[new.priority] += 1
        ids.append(job_id)
    return ids


def _next_virtual_start(connection: Connection, owner_id: str, priority: int) -> int:
    """The virtual start of an owner's next job of a priority.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996) with equal weights: one more than the
    virtual start of the owner's last active job, and not less than that of the first queued job.
    An owner with five hundred jobs and one with a single job take turns. Each priority has a
    virtual time of its own, in a range before those of all lower priorities.
    """
    first = -priority * _PRIORITY_STEP
    low, high = first - _PRIORITY_STEP // 2, first + _PRIORITY_STEP // 2 - 1
    values = {"owner": owner_id, "low": low, "high": high}
    own, head, running = connection.execute(VIRTUAL_STARTS, values).one()
    virtual_time = head - 1 if head is not None else first if running is None else running
    return max(virtual_time, first if own is None else own) + 1
