"""JobStore: the only code that writes a job's status.

Every transition is one guarded UPDATE, judged by its row count, with one row in ``job_events`` in
the same transaction. The clock is the database's. Knows nothing of Redis, Celery or tokens: a lost
ticket or stream cannot change what is stored here.

The statements are in ``admission``, ``claims``, ``finishing``, ``leases`` and ``sweeping``;
``JobStore`` opens their transactions.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import Engine, delete, insert, select, update

from textmill.core.access.audit import append
from textmill.core.access.principals import LOCAL, Principal
from textmill.core.access.shares import forget
from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import JOBS, Job, JobTrace, Run
from textmill.core.errors import Conflict, Quota
from textmill.core.jobs import claims, finishing, leases
from textmill.core.jobs.admission import (
    Limits,
    NewJob,
    Origin,
    check_room,
    insert_queued,
    known_request,
    lock_submissions,
)
from textmill.core.jobs.finishing import Outcome, Progress
from textmill.core.jobs.leases import HeldLease, LeaseStatus
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.jobs.search import search_columns
from textmill.core.jobs.sweeping import MAX_LOSSES, SweepReport, sweep
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


def _no_note(quotas: Sequence[Quota]) -> None:
    """Ignore what is left of a budget."""


class JobStore:
    """Stores jobs and moves them from status to status.

    Args:
        engine: of the database.
        limits: how many jobs may wait, and for how long.
        lease_seconds: how long a claimed job stays a worker's without a renewal.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits = DEFAULT_LIMITS,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.engine = engine
        self._limits = limits
        self._lease_ms = int(lease_seconds * 1000)

    # ---- the web side -----------------------------------------------------------------------

    def submit(
        self, new: NewJob, origin: Origin, note: Callable[[Sequence[Quota]], None] = _no_note
    ) -> JobRecord:
        """Store one job as queued, or return the one that the same key created before.

        Args:
            new: the job.
            origin: its owner, and who pays for it.
            note: gets what is left of the owner's budget.

        Raises:
            QueueFull: the queue has no room.
            RateLimited: this owner has too many jobs, or has ordered too many tokens.
            ValidationFailed: the key was used with another body.
        """
        search = {new.prompt: search_columns(new.prompt)}
        with writing(self.engine) as connection:
            lock_submissions(connection)
            known = known_request(connection, Job, origin)
            if known is not None:
                return job_record(connection, known)
            quotas = check_room(connection, origin, [new], self._limits)
            (job_id,) = insert_queued(
                connection, [new], origin, run_id=None, limits=self._limits, search=search
            )
            note(quotas)
            return job_record(connection, job_id)

    def submit_run(
        self,
        prompt: str,
        jobs: Sequence[NewJob],
        origin: Origin,
        note: Callable[[Sequence[Quota]], None] = _no_note,
    ) -> RunRecord:
        """Store a run and all its jobs, or none of them.

        Raises:
            QueueFull, RateLimited, ValidationFailed: as ``submit``.
        """
        search = {text: search_columns(text) for text in {new.prompt for new in jobs}}
        with writing(self.engine) as connection:
            lock_submissions(connection)
            run_id = known_request(connection, Run, origin)
            if run_id is None:
                note(check_room(connection, origin, jobs, self._limits))
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
                without_key = replace(origin, idempotency_key=None, request_hash=None)
                insert_queued(
                    connection,
                    jobs,
                    without_key,
                    run_id=run_id,
                    limits=self._limits,
                    search=search,
                )
            return run_record(connection, run_id)

    def request_cancel(
        self, job_id: str, actor: str = "client", *, principal: Principal = LOCAL
    ) -> JobRecord:
        """Cancel a queued job now, or mark a running one for its worker to stop.

        Raises:
            NotFound: there is no such job that the principal may change.
            Conflict: it has already ended.
        """
        with writing(self.engine) as connection:
            was = job_record(connection, job_id, lock=True, sight=principal.changes)
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
            if principal.kind != "local" and was.owner_id != principal.owner_id:
                append(connection, "cancel", job_id, principal)
            return job_record(connection, job_id)

    def delete(
        self,
        job_id: str,
        actor: str = "client",
        *,
        principal: Principal = LOCAL,
        reason: str = "",
    ) -> JobRecord:
        """Delete a job; one that has not ended is canceled first.

        The job's events are kept: they record that it was accepted and how it ended.

        Returns:
            The job as it was before.

        Raises:
            NotFound: there is no such job that the principal may change.
        """
        with writing(self.engine) as connection:
            was = job_record(connection, job_id, lock=True, sight=principal.changes)
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
                done = connection.execute(delete(Run).where(Run.id == was.run_id, ~left))
                if done.rowcount:
                    forget(connection, was.run_id)
            forget(connection, job_id)
            if principal.kind != "local":
                append(connection, "delete", job_id, principal, reason)
            return was

    def star(self, job_id: str, *, is_starred: bool, principal: Principal = LOCAL) -> JobRecord:
        """Mark a job, so that it does not expire, or take the mark away.

        Raises:
            NotFound: there is no such job that the principal may change.
        """
        with writing(self.engine) as connection:
            is_it = (Job.id == job_id, principal.changes.condition(Job.owner_id))
            connection.execute(update(JOBS).where(*is_it).values(is_starred=is_starred))
            return job_record(connection, job_id, sight=principal.changes)

    # ---- the worker side --------------------------------------------------------------------

    def has_eligible(self, models: Sequence[str]) -> bool:
        """Whether a worker of these models could claim a job now; takes no lock."""
        with reading(self.engine) as connection:
            return claims.has_eligible(connection, models)

    def claim(
        self,
        worker_id: str,
        models: Sequence[str],
        *,
        most_losses: int = MAX_LOSSES,
        waits_for_first: bool = False,
    ) -> JobRecord | None:
        """Claim the first eligible job: by fair share, then by age.

        Args:
            worker_id: the worker that gets the job.
            models: the models that the worker serves.
            most_losses: jobs that were lost more often are skipped; see ``worker.isolation``.
            waits_for_first: claim nothing if the first job would be skipped.

        Returns:
            The running job under its new attempt; ``None`` if there is none to claim.
        """
        with writing(self.engine) as connection:
            return claims.claim(
                connection,
                worker_id,
                models,
                self._lease_ms,
                most_losses=most_losses,
                waits_for_first=waits_for_first,
            )

    def finish(self, job: JobRecord, outcome: Outcome) -> Outcome | None:
        """Write the end of a job under the attempt that was claimed.

        A job whose cancel was requested, and confirmed to the client, ends as canceled however its
        text ended; it keeps the text. A request either comes before this call and is kept, or
        after it and is refused: the guards of the two UPDATEs exclude each other, and a request is
        never withdrawn.

        Returns:
            The outcome as written; ``None`` if the job no longer belongs to this attempt, whose
            output is to be discarded.
        """
        search = ended_search(job.prompt, outcome.text)
        with writing(self.engine) as connection:
            return finishing.finish(connection, job, outcome, search)

    def release(
        self, job: JobRecord, *, delay_seconds: float = 0.0, counts_as_loss: bool = False
    ) -> bool:
        """Return a running job to the queue, on a drain or after a transient error.

        A drain counts no loss. An error in decoding does, so that the job runs alone the next
        time. A job whose cancel was requested meanwhile ends as canceled instead. The UPDATE for a
        job without such a request comes first and the one for a job with it second, so that a
        request which arrives between the two is seen.

        Returns:
            Whether the job still belonged to this attempt.
        """
        with writing(self.engine) as connection:
            return finishing.release(
                connection, job, delay_seconds=delay_seconds, counts_as_loss=counts_as_loss
            )

    def save_progress(self, worker_id: str, progress: Sequence[Progress]) -> None:
        """Store the texts of running jobs; jobs that the worker no longer holds are skipped."""
        if progress:
            with writing(self.engine) as connection:
                finishing.save_progress(connection, worker_id, progress)

    def lease_status(self, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
        """Which of a worker's jobs (id → attempt) to cancel and which are lost; changes nothing."""
        with reading(self.engine) as connection:
            return leases.lease_status(connection, worker_id, attempts)

    def renew(self, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
        """Renew the leases of a worker's jobs (id → attempt)."""
        with writing(self.engine) as connection:
            return leases.renew(connection, worker_id, attempts, self._lease_ms)

    # ---- the sweeper ------------------------------------------------------------------------

    def held_leases(self, worker_id: str | None = None) -> list[HeldLease]:
        """The leases of all running jobs, or of those of one worker.

        A program that saw a worker's process end takes back its jobs by passing them to ``sweep``.
        """
        with reading(self.engine) as connection:
            return leases.held_leases(connection, worker_id)

    def sweep(self, actor: str, dead: Sequence[HeldLease] | None = None) -> SweepReport:
        """Take back jobs of dead workers, and fail queued jobs that are past their deadline.

        Args:
            actor: the name that ``job_events`` records.
            dead: the leases to take back; ``None``: all that are expired by the database's clock.
        """
        with writing(self.engine) as connection:
            return sweep(connection, actor, dead)

    def models_waiting(self) -> list[str]:
        """The models that have eligible jobs, so that a lost ticket can be published again."""
        with reading(self.engine) as connection:
            return claims.models_waiting(connection)
