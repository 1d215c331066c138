"""JobStore: the only code that writes a job's status.

Every transition is one guarded UPDATE, judged by its row count, with one row in ``job_events`` in
the same transaction; the clock is the database's. Knows nothing of Redis, Celery or tokens: a
ticket or a stream that was lost can never harm what is stored here.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Integer,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import CLAIM_ORDER, IS_QUEUED, JOBS, Job, JobTrace, Run
from textmill.core.errors import Conflict
from textmill.core.jobs.admission import (
    Limits,
    NewJob,
    Origin,
    check_room,
    insert_queued,
    known_request,
    lock_submissions,
)
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.jobs.sweeping import MAX_LOSSES, HeldLease, SweepReport, held_leases, sweep
from textmill.core.jobs.transitions import (
    QUEUED,
    RUNNING,
    end_queued,
    ended_search,
    job_record,
    move,
    run_record,
)
from textmill.core.statuses import FINAL_STATUSES

__all__ = [
    "JobStore",
    "LeaseStatus",
    "Limits",
    "NewJob",
    "Origin",
    "Outcome",
    "Progress",
]

LEASE_SECONDS = 30.0  # six missed heartbeats
DEFAULT_LIMITS = Limits()
# Statements that every job needs, built once: building one costs as much as executing it.
_IS_ELIGIBLE = (
    IS_QUEUED,
    Job.model.in_(bindparam("models", expanding=True)),
    Job.not_before <= now_ms(),
    Job.deadline_at >= now_ms(),
    Job.cancel_requested_at.is_(None),
)
_ELIGIBLE = select(Job.id).where(*_IS_ELIGIBLE).limit(1)
CANDIDATE = (
    select(JOBS, now_ms().label("now"))
    .where(*_IS_ELIGIBLE, Job.lost_count <= bindparam("most_losses", type_=Integer))
    .order_by(*CLAIM_ORDER)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_CLAIMABLE = QUEUED.where(Job.cancel_requested_at.is_(None))
_FIRST_TOKEN_AT = func.coalesce(
    Job.started_at + bindparam("first_ms", type_=BigInteger), Job.first_token_at
)
_NUM_PROMPT_TOKENS = func.coalesce(bindparam("num_prompt", type_=Integer), Job.num_prompt_tokens)
_NOT_ASKED = Job.cancel_requested_at.is_(None)
_ASKED = Job.cancel_requested_at.is_not(None)
_ENDING = RUNNING.values(
    finished_at=now_ms(), first_token_at=_FIRST_TOKEN_AT, num_prompt_tokens=_NUM_PROMPT_TOKENS
)
_ENDING_UNASKED = _ENDING.where(_NOT_ASKED)
_ENDING_ASKED = _ENDING.where(_ASKED)
_PROGRESSING = RUNNING.where(Job.worker_id == bindparam("of_worker")).values(
    first_token_at=_FIRST_TOKEN_AT, num_prompt_tokens=_NUM_PROMPT_TOKENS
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended on its worker.

    ``first_token_seconds`` counts from the claim; ``trace`` is JSON, one object a token.
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
    """What a running job has written so far."""

    job_id: str
    attempt: int
    text: str
    num_completion_tokens: int
    num_prompt_tokens: int | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """What the database says of a worker's jobs: which to cancel, which are no longer its own."""

    to_cancel: frozenset[str]
    lost: frozenset[str]


class JobStore:
    """Stores jobs and moves them from state to state."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits = DEFAULT_LIMITS,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """Keep the engine and what the queue admits."""
        self.engine = engine
        self._limits = limits
        self._lease_ms = int(lease_seconds * 1000)

    # ---- the web side -----------------------------------------------------------------------

    def submit(self, new: NewJob, origin: Origin) -> JobRecord:
        """Store one job as queued, or find the one that the same key made before.

        Raises:
            QueueFull: the queue holds ``max_queued`` jobs.
            RateLimited: this owner has too many waiting.
            ValidationFailed: the key was used with another body.
        """
        with writing(self.engine) as connection:
            lock_submissions(connection)
            known = known_request(connection, Job, origin)
            if known is not None:
                return job_record(connection, known)
            check_room(connection, origin.owner_id, 1, self._limits)
            (job_id,) = insert_queued(connection, [new], origin, run_id=None, limits=self._limits)
            return job_record(connection, job_id)

    def submit_run(self, prompt: str, jobs: Sequence[NewJob], origin: Origin) -> RunRecord:
        """Store a run and all its jobs, or none of them.

        Raises:
            QueueFull, RateLimited, ValidationFailed: as ``submit``.
        """
        with writing(self.engine) as connection:
            lock_submissions(connection)
            run_id = known_request(connection, Run, origin)
            if run_id is None:
                check_room(connection, origin.owner_id, len(jobs), self._limits)
                run_id = str(uuid.uuid4())
                connection.execute(
                    insert(Run).values(
                        id=run_id,
                        owner_id=origin.owner_id,
                        prompt=prompt,
                        idempotency_key=origin.idempotency_key,
                        request_hash=origin.request_hash,
                        created_at=now_ms(),
                    )
                )
                insert_queued(
                    connection, jobs, Origin(origin.owner_id), run_id=run_id, limits=self._limits
                )
            return run_record(connection, run_id)

    def request_cancel(self, job_id: str, actor: str = "client") -> JobRecord:
        """Cancel a queued job now; ask the worker of a running one to stop.

        Raises:
            NotFound: there is no such job.
            Conflict: it has already ended.
        """
        with writing(self.engine) as connection:
            was = job_record(connection, job_id, lock=True)
            if was.status in FINAL_STATUSES:
                raise Conflict(f"The job has already ended: {was.status}.")
            if was.status == "queued":
                end_queued(connection, was, "canceled", "canceled", actor)
            else:
                connection.execute(
                    update(JOBS)
                    .where(Job.id == job_id, Job.cancel_requested_at.is_(None))
                    .values(cancel_requested_at=now_ms())
                )
            return job_record(connection, job_id)

    def delete(self, job_id: str, actor: str = "client") -> JobRecord:
        """Remove a job; one that has not ended is canceled first. Returns what it was.

        The events of the job stay: they tell that it was accepted and how it ended.

        Raises:
            NotFound: there is no such job.
        """
        with writing(self.engine) as connection:
            was = job_record(connection, job_id, lock=True)
            if was.status not in FINAL_STATUSES:
                changed = move(
                    connection,
                    QUEUED if was.status == "queued" else RUNNING,
                    was,
                    "canceled",
                    actor,
                    finish_reason="canceled",
                    finished_at=now_ms(),
                )
                if not changed:  # pragma: no cover - the row is locked since it was read
                    raise Conflict("The job changed while it was being deleted; try again.")
            connection.execute(delete(JobTrace).where(JobTrace.job_id == job_id))
            connection.execute(delete(Job).where(Job.id == job_id))
            if was.run_id is not None:
                left = select(Job.id).where(Job.run_id == was.run_id).exists()
                connection.execute(delete(Run).where(Run.id == was.run_id, ~left))
            return was

    # ---- the worker side --------------------------------------------------------------------

    def has_eligible(self, models: Sequence[str]) -> bool:
        """Whether a worker of these models could claim something now; takes no lock."""
        with reading(self.engine) as connection:
            return connection.execute(_ELIGIBLE, {"models": models}).first() is not None

    def claim(
        self,
        worker_id: str,
        models: Sequence[str],
        *,
        most_losses: int = MAX_LOSSES,
        waits_for_first: bool = False,
    ) -> JobRecord | None:
        """Take the best eligible row: by fair share, then age.

        Args:
            worker_id: whose job it becomes.
            models: those that the worker serves.
            most_losses: jobs that were lost more often are passed over: see worker.isolation.
            waits_for_first: take nothing when the best row is one of those.

        Returns:
            The running job under its new attempt; ``None`` when there is none to take.
        """
        with writing(self.engine) as connection:
            asked = {"models": models, "most_losses": MAX_LOSSES}
            row = connection.execute(CANDIDATE, asked).first()
            if row is not None and row.lost_count > most_losses:
                if waits_for_first:
                    return None
                asked["most_losses"] = most_losses
                row = connection.execute(CANDIDATE, asked).first()
            if row is None:
                return None
            was = JobRecord.from_row(row)
            claimed: dict[str, Any] = {
                "attempt": was.attempt + 1,
                "worker_id": worker_id,
                "lease_until": row.now + self._lease_ms,
                "text": "",
                "num_completion_tokens": 0,
                "first_token_at": None,
                "started_at": row.now,
            }
            if not move(connection, _CLAIMABLE, was, "running", worker_id, **claimed):
                return None
            return replace(was, status="running", **claimed)

    def finish(self, job: JobRecord, outcome: Outcome) -> Outcome | None:
        """Write a job's end under the attempt that was claimed.

        A job that a client asked to cancel, and was told so, ends as canceled however its text
        ended; it keeps the text. A request to cancel comes either before this, and is kept, or
        after it, and is refused: the guards of the two UPDATEs exclude each other, and a request
        that was once made is never taken back.

        Returns:
            The outcome as it was written; ``None``: the job is no longer this attempt's, throw the
            output away.
        """
        with writing(self.engine) as connection:
            for guard, ended in (
                (_ENDING_UNASKED, outcome),
                (_ENDING_ASKED, _as_canceled(outcome)),
            ):
                if not move(connection, guard, job, ended.status, _worker(job), **_end(job, ended)):
                    continue
                if ended.trace is not None:
                    connection.execute(delete(JobTrace).where(JobTrace.job_id == job.id))
                    connection.execute(insert(JobTrace).values(job_id=job.id, tokens=ended.trace))
                return ended
        return None

    def release(
        self, job: JobRecord, *, delay_seconds: float = 0.0, counts_as_loss: bool = False
    ) -> bool:
        """Give a running job back to the queue (drain, transient error).

        A drain counts no loss; an error in decoding does, so that the job runs alone the next
        time. A job that a client asked to cancel meanwhile ends as canceled instead: first the
        UPDATE of one that was not asked for, then that of one that was, so that a request which
        arrives between the two is seen.
        """
        with writing(self.engine) as connection:
            is_queued = move(
                connection,
                RUNNING.where(_NOT_ASKED),
                job,
                "queued",
                _worker(job),
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
                RUNNING.where(_ASKED),
                job,
                "canceled",
                _worker(job),
                **ended_search(job.prompt, kept),
                finish_reason="canceled",
                lease_until=None,
                finished_at=now_ms(),
            )

    def save_progress(self, worker_id: str, progress: Sequence[Progress]) -> None:
        """Store the text so far of running jobs; a job that is no longer the worker's is passed."""
        if not progress:
            return
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
        with writing(self.engine) as connection:
            connection.execute(_PROGRESSING, rows)

    def lease_status(self, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
        """Which of a worker's jobs (id → attempt) to cancel and which are lost; changes nothing."""
        with reading(self.engine) as connection:
            return _standing(connection, worker_id, attempts)

    def renew(self, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
        """Renew the leases of the jobs that a worker holds, id → attempt."""
        with writing(self.engine) as connection:
            if attempts:
                connection.execute(
                    update(JOBS)
                    .where(
                        Job.id.in_(attempts),
                        Job.worker_id == worker_id,
                        Job.status == "running",
                    )
                    .values(lease_until=now_ms() + self._lease_ms)
                )
            return _standing(connection, worker_id, attempts)

    # ---- the sweeper ------------------------------------------------------------------------

    def held_leases(self, worker_id: str | None = None) -> list[HeldLease]:
        """The leases of all jobs that run, or of those of one worker.

        Who saw a worker's process end takes all its jobs back by ``sweep`` of what this returns.
        """
        with reading(self.engine) as connection:
            return held_leases(connection, worker_id)

    def sweep(self, actor: str, dead: Sequence[HeldLease] | None = None) -> SweepReport:
        """Take back jobs of dead workers, and fail those that waited beyond their deadline.

        Args:
            actor: is named in ``job_events``.
            dead: the leases to take back; ``None``: all that are expired by the database's clock.
        """
        with writing(self.engine) as connection:
            return sweep(connection, actor, dead)

    def models_waiting(self) -> list[str]:
        """The models that have eligible jobs, so that a lost ticket can be published again."""
        with reading(self.engine) as connection:
            query = (
                select(Job.model)
                .where(
                    IS_QUEUED,
                    Job.not_before <= now_ms(),
                    Job.cancel_requested_at.is_(None),
                )
                .distinct()
            )
            return list(connection.execute(query).scalars())


def _as_canceled(outcome: Outcome) -> Outcome:
    """The end of a job that was asked to cancel, with the text that it had by then."""
    return replace(
        outcome, status="canceled", finish_reason="canceled", error_code=None, error_message=None
    )


def _end(job: JobRecord, outcome: Outcome) -> dict[str, Any]:
    """The columns that an outcome gives a job, and what ``_ENDING`` asks for."""
    return {
        "text": outcome.text,
        **ended_search(job.prompt, outcome.text),
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


def _worker(job: JobRecord) -> str:
    return job.worker_id or "worker"


def _standing(connection: Connection, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
    if not attempts:
        return LeaseStatus(frozenset(), frozenset())
    rows = connection.execute(
        select(Job.id, Job.attempt, Job.cancel_requested_at).where(
            Job.id.in_(attempts), Job.worker_id == worker_id, Job.status == "running"
        )
    ).all()
    held = {row.id: row for row in rows if row.attempt == attempts[row.id]}
    return LeaseStatus(
        to_cancel=frozenset(i for i, row in held.items() if row.cancel_requested_at is not None),
        lost=frozenset(attempts.keys() - held.keys()),
    )
