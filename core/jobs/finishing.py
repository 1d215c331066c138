"""How a running job leaves its worker: its end, its return to the queue, and progress until then.

Runs inside the transactions of ``core.jobs.store.JobStore``. Each statement is guarded by the
attempt that was claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, bindparam, delete, func, insert, select

from textmill.core.database.connections import now_ms
from textmill.core.database.tables import Job, JobTrace
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.transitions import RUNNING, ended_search, move

# Built once: building a statement costs as much as executing it.
_FIRST_TOKEN_AT = func.coalesce(
    Job.started_at + bindparam("first_ms", type_=BigInteger), Job.first_token_at
)
_NUM_PROMPT_TOKENS = func.coalesce(bindparam("num_prompt", type_=Integer), Job.num_prompt_tokens)
_NO_CANCEL = Job.cancel_requested_at.is_(None)
_CANCEL = Job.cancel_requested_at.is_not(None)
_FINISH = RUNNING.values(
    finished_at=now_ms(), first_token_at=_FIRST_TOKEN_AT, num_prompt_tokens=_NUM_PROMPT_TOKENS
)
_FINISH_WITHOUT_CANCEL = _FINISH.where(_NO_CANCEL)
_FINISH_WITH_CANCEL = _FINISH.where(_CANCEL)
_PROGRESS = RUNNING.where(Job.worker_id == bindparam("of_worker")).values(
    first_token_at=_FIRST_TOKEN_AT, num_prompt_tokens=_NUM_PROMPT_TOKENS
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended on its worker.

    Attributes:
        first_token_seconds: time from the claim to the first token.
        trace: JSON, one object per token.
    """

    status: str
    text: str
    finish_reason: str
    num_prompt_tokens: int | None
    num_completion_tokens: int
    first_token_seconds: float | None = None
    model_revision: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    trace: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """The text of a running job so far."""

    job_id: str
    attempt: int
    text: str
    num_completion_tokens: int
    num_prompt_tokens: int | None = None
    first_token_seconds: float | None = None


def finish(
    connection: Connection, job: JobRecord, outcome: Outcome, search: Mapping[str, Any]
) -> Outcome | None:
    """End a job; ``JobStore.finish`` says how a requested cancel changes the outcome.

    ``search`` has the search columns of the prompt and the text, computed before the transaction.
    """
    canceled = replace(
        outcome, status="canceled", finish_reason="canceled", error_code=None, error_message=None
    )
    for guard, ended in ((_FINISH_WITHOUT_CANCEL, outcome), (_FINISH_WITH_CANCEL, canceled)):
        if not move(connection, guard, job, ended.status, _actor(job), **_values(ended), **search):
            continue
        if ended.trace is not None:
            connection.execute(delete(JobTrace).where(JobTrace.job_id == job.id))
            connection.execute(insert(JobTrace).values(job_id=job.id, tokens=ended.trace))
        return ended
    return None


def release(
    connection: Connection, job: JobRecord, *, delay_seconds: float, counts_as_loss: bool
) -> bool:
    """Return a running job to the queue; ``JobStore.release`` says what a cancel changes."""
    is_queued = move(
        connection,
        RUNNING.where(_NO_CANCEL),
        job,
        "queued",
        _actor(job),
        worker_id=None,
        lease_until=None,
        lost_count=job.lost_count + int(counts_as_loss),
        not_before=now_ms() + int(delay_seconds * 1000),
    )
    if is_queued:
        return True
    kept = connection.execute(select(Job.text).where(Job.id == job.id)).scalar() or ""
    return move(
        connection,
        RUNNING.where(_CANCEL),
        job,
        "canceled",
        _actor(job),
        **ended_search(job.prompt, kept),
        finish_reason="canceled",
        lease_until=None,
        finished_at=now_ms(),
    )


def save_progress(connection: Connection, worker_id: str, progress: Sequence[Progress]) -> None:
    """Store the texts of a worker's running jobs; jobs that it no longer holds are skipped."""
    rows = [
        {
            "of_job": item.job_id,
            "of_attempt": item.attempt,
            "of_worker": worker_id,
            "text": item.text,
            "num_completion_tokens": item.num_completion_tokens,
            "num_prompt": item.num_prompt_tokens,
            "first_ms": _milliseconds(item.first_token_seconds),
        }
        for item in progress
    ]
    connection.execute(_PROGRESS, rows)


def _values(outcome: Outcome) -> dict[str, Any]:
    """The columns that an outcome sets, and the parameters of ``_FINISH``."""
    return {
        "text": outcome.text,
        "finish_reason": outcome.finish_reason,
        "error_code": outcome.error_code,
        "error_message": outcome.error_message,
        "num_completion_tokens": outcome.num_completion_tokens,
        "model_revision": outcome.model_revision,
        "lease_until": None,
        "num_prompt": outcome.num_prompt_tokens,
        "first_ms": _milliseconds(outcome.first_token_seconds),
    }


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _actor(job: JobRecord) -> str:
    return job.worker_id or "worker"
