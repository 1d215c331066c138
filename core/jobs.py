"""JobStore: the only code that writes a job's status.

Every transition is one guarded UPDATE, judged by its row count, with one row in ``job_events`` in
the same transaction; the clock is the database's. Knows nothing of Redis, Celery or tokens: a
ticket or a stream that was lost can never harm what stands here.

Sources of the rules: DESIGN.md, "The database is the truth, Redis is only speed".
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Select,
    Update,
    and_,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from core.db import now_ms, reading, writing
from core.errors import Conflict, FieldError, NotFound, QueueFull, RateLimited, ValidationFailed
from core.models import Job, JobEvent, JobTrace, Run
from core.records import JobRecord, RunRecord
from core.search import search_text

LEASE_SECONDS = 30.0  # six missed heartbeats
MAX_LOSSES = 3  # a job whose worker died this often is not tried again
RETRY_DELAY_SECONDS = 1.0  # times the losses so far: a crash loop must not spin
_SUBMISSION_LOCK = 0x7E_87_11_11  # any constant; one lock for all that count the queue
_FINAL = ("succeeded", "failed", "canceled")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated request, ready to be stored."""

    model: str
    prompt: str
    strategy: str
    parameters: dict[str, Any]
    has_trace: bool = False
    num_prompt_tokens: int | None = None
    priority: int = 0
    variant_index: int | None = None
    sample_index: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, and how a repetition of the same request is known."""

    owner_id: str
    idempotency_key: str | None = None
    request_hash: str | None = None


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
class Standing:
    """What the database says of a worker's jobs: which to cancel, which are no longer its own."""

    to_cancel: frozenset[str]
    lost: frozenset[str]


@dataclass(slots=True)
class SweepReport:
    """What one sweep changed; ``requeued`` holds (job id, model)."""

    requeued: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)


class JobStore:
    """Stores jobs and moves them from state to state."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_queued: int = 1000,
        max_queued_per_owner: int = 0,
        deadline_seconds: float = 86_400.0,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """Keep the engine and the limits; ``max_queued_per_owner`` 0 means none."""
        self.engine = engine
        self._max_queued = max_queued
        self._max_queued_per_owner = max_queued_per_owner
        self._deadline_ms = int(deadline_seconds * 1000)
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
            self._lock_submissions(connection)
            known = self._known(connection, Job, origin)
            if known is not None:
                return _record(connection, known)
            self._check_room(connection, origin.owner_id, 1)
            (job_id,) = self._insert(connection, [new], origin, run_id=None)
            return _record(connection, job_id)

    def submit_run(self, prompt: str, jobs: Sequence[NewJob], origin: Origin) -> RunRecord:
        """Store a run and all its jobs, or none of them.

        Raises:
            QueueFull, RateLimited, ValidationFailed: as ``submit``.
        """
        with writing(self.engine) as connection:
            self._lock_submissions(connection)
            run_id = self._known(connection, Run, origin)
            if run_id is None:
                self._check_room(connection, origin.owner_id, len(jobs))
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
                self._insert(connection, jobs, Origin(origin.owner_id), run_id=run_id)
            return _run_record(connection, run_id)

    def request_cancel(self, job_id: str, actor: str = "client") -> JobRecord:
        """Cancel a queued job now; ask the worker of a running one to stop.

        Raises:
            NotFound: there is no such job.
            Conflict: it has already ended.
        """
        with writing(self.engine) as connection:
            was = _record(connection, job_id, lock=True)
            if was.status in _FINAL:
                raise Conflict(f"The job has already ended: {was.status}.")
            if was.status == "queued":
                self._end_queued(connection, was, "canceled", "canceled", actor)
            else:
                connection.execute(
                    update(Job)
                    .where(Job.id == job_id, Job.cancel_requested_at.is_(None))
                    .values(cancel_requested_at=now_ms())
                )
            return _record(connection, job_id)

    def delete(self, job_id: str, actor: str = "client") -> JobRecord:
        """Remove a job; one that has not ended is canceled first. Returns what it was.

        The events of the job stay: they tell that it was accepted and how it ended.

        Raises:
            NotFound: there is no such job.
        """
        with writing(self.engine) as connection:
            was = _record(connection, job_id, lock=True)
            if was.status not in _FINAL:
                changed = _move(
                    connection,
                    update(Job).where(Job.id == job_id, Job.status == was.status),
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
            return connection.execute(self._eligible(models).limit(1)).first() is not None

    def claim(self, worker_id: str, models: Sequence[str], *, is_idle: bool) -> JobRecord | None:
        """Take the best eligible row: by priority, then fair share, then age.

        A job that was lost once runs alone, so that its batch-mates are safe from it: a worker
        that is not idle leaves it, and everything behind it, until it is.

        Returns:
            The running job under its new attempt; ``None`` when there is none to take.
        """
        candidate = (
            self._eligible(models)
            .order_by(Job.priority.desc(), Job.share_rank, Job.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with writing(self.engine) as connection:
            row = connection.execute(candidate).first()
            if row is None:
                return None
            was = _record(connection, row.id)
            if was.lost_count and not is_idle:
                return None
            taken = _move(
                connection,
                update(Job).where(
                    Job.id == was.id,
                    Job.status == "queued",
                    Job.attempt == was.attempt,
                    Job.cancel_requested_at.is_(None),
                ),
                was,
                "running",
                worker_id,
                attempt=was.attempt + 1,
                worker_id=worker_id,
                lease_until=now_ms() + self._lease_ms,
                text="",
                num_completion_tokens=0,
                first_token_at=None,
                started_at=now_ms(),
            )
            return _record(connection, was.id) if taken else None

    def finish(self, job: JobRecord, outcome: Outcome) -> bool:
        """Write a job's end under the attempt that was claimed.

        Returns:
            Whether it was written; ``False``: the job is no longer this attempt's, throw the
            output away.
        """
        values: dict[str, Any] = {
            "text": outcome.text,
            "search_text": search_text(job.prompt, outcome.text),
            "finish_reason": outcome.finish_reason,
            "error_code": outcome.error_code,
            "error_message": outcome.error_message,
            "num_completion_tokens": outcome.num_completion_tokens,
            "model_revision": outcome.model_revision,
            "lease_until": None,
            "finished_at": now_ms(),
        }
        if outcome.num_prompt_tokens is not None:
            values["num_prompt_tokens"] = outcome.num_prompt_tokens
        if outcome.first_token_seconds is not None:
            values["first_token_at"] = Job.started_at + int(outcome.first_token_seconds * 1000)
        with writing(self.engine) as connection:
            guard = _held(job)
            if not _move(connection, guard, job, outcome.status, _worker(job), **values):
                return False
            if outcome.trace is not None:
                connection.execute(delete(JobTrace).where(JobTrace.job_id == job.id))
                connection.execute(insert(JobTrace).values(job_id=job.id, tokens=outcome.trace))
            return True

    def release(self, job: JobRecord, *, delay_seconds: float = 0.0) -> bool:
        """Give a running job back to the queue without counting a loss (drain, transient error).

        A job that somebody asked to cancel meanwhile ends as canceled instead.
        """
        with writing(self.engine) as connection:
            asked = _move(
                connection,
                _held(job).where(Job.cancel_requested_at.is_not(None)),
                job,
                "canceled",
                _worker(job),
                finish_reason="canceled",
                lease_until=None,
                finished_at=now_ms(),
            )
            return asked or _move(
                connection,
                _held(job),
                job,
                "queued",
                _worker(job),
                worker_id=None,
                lease_until=None,
                not_before=now_ms() + int(delay_seconds * 1000),
            )

    def save_progress(self, worker_id: str, progress: Sequence[Progress]) -> None:
        """Store the text so far of running jobs; a job that is no longer the worker's is passed."""
        with writing(self.engine) as connection:
            for item in progress:
                values: dict[str, Any] = {
                    "text": item.text,
                    "num_completion_tokens": item.num_completion_tokens,
                }
                if item.num_prompt_tokens is not None:
                    values["num_prompt_tokens"] = item.num_prompt_tokens
                if item.first_token_seconds is not None:
                    ms = int(item.first_token_seconds * 1000)
                    values["first_token_at"] = Job.started_at + ms
                connection.execute(
                    update(Job)
                    .where(
                        Job.id == item.job_id,
                        Job.status == "running",
                        Job.attempt == item.attempt,
                        Job.worker_id == worker_id,
                    )
                    .values(values)
                )

    def standing(self, worker_id: str, attempts: dict[str, int]) -> Standing:
        """Which of a worker's jobs (id → attempt) to cancel and which are lost; changes nothing."""
        with reading(self.engine) as connection:
            return _standing(connection, worker_id, attempts)

    def renew(self, worker_id: str, attempts: dict[str, int]) -> Standing:
        """Renew the leases of the jobs that a worker holds, id → attempt."""
        with writing(self.engine) as connection:
            if attempts:
                connection.execute(
                    update(Job)
                    .where(
                        Job.id.in_(attempts),
                        Job.worker_id == worker_id,
                        Job.status == "running",
                    )
                    .values(lease_until=now_ms() + self._lease_ms)
                )
            return _standing(connection, worker_id, attempts)

    # ---- the sweeper ------------------------------------------------------------------------

    def sweep(self, actor: str) -> SweepReport:
        """Take back jobs whose lease ran out, and fail those that waited beyond their deadline."""
        report = SweepReport()
        with writing(self.engine) as connection:
            expired = and_(Job.status == "running", Job.lease_until < now_ms())
            for was in _locked(connection, expired):
                self._take_back(connection, was, actor, report)
            late = and_(Job.status == "queued", Job.deadline_at < now_ms())
            for was in _locked(connection, late):
                if self._end_queued(connection, was, "failed", "deadline", actor):
                    report.failed.append(was.id)
        return report

    def models_waiting(self) -> list[str]:
        """The models that have eligible jobs, so that a lost ticket can be published again."""
        with reading(self.engine) as connection:
            query = (
                select(Job.model)
                .where(
                    Job.status == "queued",
                    Job.not_before <= now_ms(),
                    Job.cancel_requested_at.is_(None),
                )
                .distinct()
            )
            return list(connection.execute(query).scalars())

    # ---- parts ------------------------------------------------------------------------------

    def _lock_submissions(self, connection: Connection) -> None:
        """Serialise what counts the queue. SQLite's BEGIN IMMEDIATE has done so already."""
        if connection.dialect.name == "postgresql":
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SUBMISSION_LOCK}
            )

    def _known(
        self, connection: Connection, table: type[Job] | type[Run], origin: Origin
    ) -> str | None:
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

    def _check_room(self, connection: Connection, owner_id: str, num_new: int) -> None:
        queued = select(func.count()).select_from(Job).where(Job.status == "queued")
        if connection.execute(queued).scalar_one() + num_new > self._max_queued:
            raise QueueFull(
                f"The queue is full ({self._max_queued} jobs wait); try again in a while.",
                retry_after_seconds=5,
            )
        if not self._max_queued_per_owner:
            return
        own = connection.execute(queued.where(Job.owner_id == owner_id)).scalar_one()
        if own + num_new > self._max_queued_per_owner:
            raise RateLimited(
                f"You have {own} jobs waiting, and {self._max_queued_per_owner} are allowed;"
                " wait for some of them.",
                retry_after_seconds=5,
            )

    def _insert(
        self, connection: Connection, jobs: Sequence[NewJob], origin: Origin, run_id: str | None
    ) -> list[str]:
        rank = self._next_share_rank(connection, origin.owner_id)
        ids = []
        for offset, new in enumerate(jobs):
            job_id = str(uuid.uuid4())
            connection.execute(
                insert(Job).values(
                    id=job_id,
                    run_id=run_id,
                    variant_index=new.variant_index,
                    sample_index=new.sample_index,
                    owner_id=origin.owner_id,
                    idempotency_key=origin.idempotency_key,
                    request_hash=origin.request_hash,
                    model=new.model,
                    prompt=new.prompt,
                    strategy=new.strategy,
                    parameters=new.parameters,
                    has_trace=new.has_trace,
                    status="queued",
                    priority=new.priority,
                    share_rank=rank + offset,
                    attempt=0,
                    lost_count=0,
                    not_before=0,
                    deadline_at=now_ms() + self._deadline_ms,
                    text="",
                    search_text=search_text(new.prompt),
                    num_prompt_tokens=new.num_prompt_tokens,
                    num_completion_tokens=0,
                    created_at=now_ms(),
                )
            )
            _append_event(connection, job_id, 0, None, "queued", "web")
            ids.append(job_id)
        return ids

    def _next_share_rank(self, connection: Connection, owner_id: str) -> int:
        """Start-time fair queueing (Goyal, Vin and Cheng, 1996), every job weighing the same.

        A job's rank is one more than its owner's last waiting one, but never before the queue's
        present virtual time: an owner with five hundred jobs and one with a single job take turns.
        """
        active = Job.status.in_(("queued", "running"))
        own, head, running = connection.execute(
            select(
                select(func.max(Job.share_rank))
                .where(active, Job.owner_id == owner_id)
                .scalar_subquery(),
                select(func.min(Job.share_rank)).where(Job.status == "queued").scalar_subquery(),
                select(func.max(Job.share_rank)).where(Job.status == "running").scalar_subquery(),
            )
        ).one()
        virtual_time = head - 1 if head is not None else (running or 0)
        return max(virtual_time, own or 0) + 1

    def _eligible(self, models: Sequence[str]) -> Select[str]:
        return select(Job.id).where(
            Job.status == "queued",
            Job.model.in_(models),
            Job.not_before <= now_ms(),
            Job.deadline_at >= now_ms(),
            Job.cancel_requested_at.is_(None),
        )

    def _end_queued(
        self, connection: Connection, was: JobRecord, status: str, reason: str, actor: str
    ) -> bool:
        values: dict[str, Any] = {"finish_reason": reason, "finished_at": now_ms()}
        if status == "failed":
            values["error_code"] = "deadline"
            values["error_message"] = "No worker could take the job before its deadline."
        guard = update(Job).where(Job.id == was.id, Job.status == "queued")
        return _move(connection, guard, was, status, actor, **values)

    def _take_back(
        self, connection: Connection, was: JobRecord, actor: str, report: SweepReport
    ) -> None:
        guard = update(Job).where(
            Job.id == was.id,
            Job.status == "running",
            Job.attempt == was.attempt,
            Job.lease_until < now_ms(),
        )
        losses = was.lost_count + 1
        lost: dict[str, Any] = {"lost_count": losses, "lease_until": None}
        ended = {
            "finished_at": now_ms(),
            "search_text": search_text(was.prompt, was.text),
        }
        if was.cancel_requested_at is not None:
            values = lost | ended | {"finish_reason": "canceled"}
            if _move(connection, guard, was, "canceled", actor, **values):
                report.canceled.append(was.id)
        elif losses >= MAX_LOSSES:
            message = f"The worker was lost {losses} times while it wrote this text."
            values = (
                lost
                | ended
                | {
                    "finish_reason": "error",
                    "error_code": "worker_lost",
                    "error_message": message,
                }
            )
            if _move(connection, guard, was, "failed", actor, **values):
                report.failed.append(was.id)
        else:
            delay_ms = int(RETRY_DELAY_SECONDS * 1000) * losses
            values = lost | {"worker_id": None, "not_before": now_ms() + delay_ms}
            if _move(connection, guard, was, "queued", actor, **values):
                report.requeued.append((was.id, was.model))


def _worker(job: JobRecord) -> str:
    return job.worker_id or "worker"


def _held(job: JobRecord) -> Update:
    """The fence: only the attempt that was claimed, and only while it runs."""
    return update(Job).where(Job.id == job.id, Job.status == "running", Job.attempt == job.attempt)


def _move(
    connection: Connection,
    guard: Update,
    was: JobRecord,
    to_status: str,
    actor: str,
    **values: Any,
) -> bool:
    """One transition: the guarded UPDATE, and its row in ``job_events`` when it took hold."""
    if connection.execute(guard.values(status=to_status, **values)).rowcount != 1:
        return False
    attempt = values.get("attempt", was.attempt)
    _append_event(connection, was.id, attempt, was.status, to_status, actor)
    return True


def _append_event(
    connection: Connection,
    job_id: str,
    attempt: int,
    from_status: str | None,
    to_status: str,
    actor: str,
) -> None:
    connection.execute(
        insert(JobEvent).values(
            job_id=job_id,
            attempt=attempt,
            from_status=from_status,
            to_status=to_status,
            actor=actor[:80],
            at=now_ms(),
        )
    )


def _locked(connection: Connection, condition: Any) -> list[JobRecord]:
    query = select(Job.__table__).where(condition).with_for_update(skip_locked=True)
    return [JobRecord.from_row(row) for row in connection.execute(query)]


def _record(connection: Connection, job_id: str, *, lock: bool = False) -> JobRecord:
    query = select(Job.__table__).where(Job.id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound("There is no job with that id; it may have been deleted.")
    return JobRecord.from_row(row)


def _run_record(connection: Connection, run_id: str) -> RunRecord:
    run = connection.execute(select(Run.__table__).where(Run.id == run_id)).one()
    jobs = connection.execute(
        select(Job.__table__).where(Job.run_id == run_id).order_by(Job.number)
    )
    return RunRecord.from_rows(run, jobs)


def _standing(connection: Connection, worker_id: str, attempts: dict[str, int]) -> Standing:
    if not attempts:
        return Standing(frozenset(), frozenset())
    rows = connection.execute(
        select(Job.id, Job.attempt, Job.cancel_requested_at).where(
            Job.id.in_(attempts), Job.worker_id == worker_id, Job.status == "running"
        )
    ).all()
    held = {row.id: row for row in rows if row.attempt == attempts[row.id]}
    return Standing(
        to_cancel=frozenset(i for i, row in held.items() if row.cancel_requested_at is not None),
        lost=frozenset(attempts.keys() - held.keys()),
    )
