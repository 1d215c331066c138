"""Claim → decode → finish: what one ticket, or one look of the poller, sets going.

No decision is made here that the database or the engine makes: the store says what may run, the
engine how a text ends, and this carries the one to the other. The Celery task and the poller call
the same ``JobWorker.work``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from textmill.core.errors import Conflict, StorageUnavailable, TextmillError, Unstorable
from textmill.core.failpoints import reach
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, Outcome, Progress
from textmill.core.redaction import reason_of
from textmill.core.strategies import decoding_parameters
from textmill.engine import Delta, Generation, GenerationRequest, GenerationResult, InferenceEngine
from textmill.engine.requests import EngineStopped
from textmill.worker.intervals import Intervals
from textmill.worker.isolation import ANY_LOSSES, Admission, RunningJob, admission
from textmill.worker.metrics import WorkerMetrics
from textmill.worker.publishing import JobStream, Publisher, storable

MAX_ERRORS = 3  # a job whose decoding failed this often fails; each error counts as a loss
RETRY_WRITE_SECONDS = 1.0  # between tries to write a result while the database is away
Written = TypeVar("Written")
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ActiveJob:
    """A job between its claim and its end; ``generation`` is ``None`` until the engine has it."""

    job: JobRecord
    claimed_at: float
    generation: Generation | None = None
    saved_characters: int = 0
    stop_reason: str | None = None


class JobWorker:
    """Runs jobs on an engine, as many at once as it has slots."""

    def __init__(
        self,
        *,
        store: JobStore,
        engine: InferenceEngine,
        publisher: Publisher,
        metrics: WorkerMetrics,
        worker_id: str,
        revisions: Mapping[str, str],
        on_dead_engine: Callable[[], None] = lambda: None,
        settled_seconds: float | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            store: what may run, and where ends are written.
            engine: what writes the texts.
            publisher: takes what is written, for those who watch.
            metrics: counts.
            worker_id: stands in the rows that this worker holds.
            revisions: the served models' names with their revisions.
            on_dead_engine: called when the engine has died under a job, which is back in the queue
                by then; a worker can do nothing but end.
            settled_seconds: after so long a job that was lost before is taken for harmless.
        """
        self._store = store
        self._engine = engine
        self._publisher = publisher
        self._metrics = metrics
        self._worker_id = worker_id
        self._revisions = dict(revisions)
        self._on_dead_engine = on_dead_engine
        self._settled_seconds = Intervals().settled if settled_seconds is None else settled_seconds
        self.models = tuple(revisions)
        self._slots = threading.Semaphore(engine.num_slots)
        self._claim_lock = threading.Lock()
        self._lock = threading.Lock()
        self._active: dict[str, ActiveJob] = {}
        self._ended = threading.Condition(self._lock)
        self._unwritten = 0  # results that wait for the database to come back
        self._closing = threading.Event()
        self._giving_up = threading.Event()
        self.num_claimed = 0
        self.is_blocked = False  # jobs that were lost before wait until others have settled

    # ---- running ----------------------------------------------------------------------------

    def work(self) -> int:
        """Run jobs until none can be claimed or no slot is free; returns how many were run."""
        num_run = 0
        while self._slots.acquire(blocking=False):
            try:
                active = self._claim()
                if active is None:
                    return num_run
                self._run(active)
                num_run += 1
            finally:
                self._slots.release()
        return num_run

    def _claim(self) -> ActiveJob | None:
        """One claim at a time, so that what may run beside what is known."""
        with self._claim_lock:
            if self._closing.is_set() or self._unwritten:
                return None
            admitted = self._admission()
            self.is_blocked = admitted.most_losses < 0
            if self.is_blocked:
                return None
            try:
                job = self._store.claim(
                    self._worker_id,
                    self.models,
                    most_losses=admitted.most_losses,
                    waits_for_first=admitted.waits_for_first,
                )
            except StorageUnavailable as error:
                log.warning("claim_failed", reason=str(error))
                return None
            if job is None:
                self.is_blocked = admitted.most_losses < ANY_LOSSES  # perhaps: a lost job waits
                return None
            self.num_claimed += 1
            active = ActiveJob(job, claimed_at=time.monotonic())
            with self._lock:
                self._active[job.id] = active
        self._metrics.claimed(job)
        return active

    def _admission(self) -> Admission:
        now = time.monotonic()
        with self._lock:
            running = [
                RunningJob(active.job.lost_count, now - active.claimed_at)
                for active in self._active.values()
            ]
        return admission(running, self._engine.num_slots, self._settled_seconds)

    def _run(self, active: ActiveJob) -> None:
        job = active.job
        stream = JobStream(job.id, job.attempt, self._publisher.add)
        try:
            with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt):
                log.info("job_started", model=job.model, strategy=job.strategy)
                stream.started()
                self._end(active, self._decode(active, stream), stream)
        finally:
            with self._lock:
                del self._active[job.id]
                self._ended.notify_all()

    def _decode(self, active: ActiveJob, stream: JobStream) -> GenerationResult:
        """Let the engine write the text; whatever goes wrong becomes a result."""
        job = active.job

        def on_delta(delta: Delta) -> None:
            stream.append(delta.text, delta.num_tokens)

        try:
            left = (job.deadline_at - (job.started_at or job.deadline_at)) / 1000
            generation = self._engine.submit(
                GenerationRequest(
                    job_id=job.id,
                    model=job.model,
                    prompt=job.prompt,
                    parameters=decoding_parameters(
                        job.strategy, job.parameters, trace=job.has_trace
                    ),
                    deadline=time.monotonic() + max(0.0, left),
                ),
                on_delta,
            )
            with self._lock:
                active.generation = generation
                reason = active.stop_reason
            if reason is not None:  # asked to stop before the engine had it
                generation.cancel(reason)
            return generation.result()
        except Exception as error:  # the task edge: nothing may leave a job without an end
            log.exception("decoding_failed", job_id=job.id)
            return _failed(error)

    def _end(self, active: ActiveJob, result: GenerationResult, stream: JobStream) -> None:
        job = active.job
        if result.finish_reason == "lost":
            log.warning("job_lost")
            return
        if result.finish_reason == "released":
            self._write(lambda: self._store.release(job))
            log.info("job_released")
            return
        if isinstance(result.error, EngineStopped):
            self._give_back(job)
            return
        if result.finish_reason == "error" and self._retries(job, result):
            self._write(lambda: self._store.release(job, delay_seconds=1.0, counts_as_loss=True))
            reason = reason_of(result.error) if result.error else ""
            log.warning("job_retried", code=_code(result.error), reason=reason)
            return
        made = self._outcome(job, result)
        reach("before_result", job.prompt)
        outcome = self._finish(job, made)
        if outcome is None:
            log.warning("result_thrown_away", status=made.status)
            return
        reach("after_result", job.prompt)
        stream.done(len(outcome.text), outcome.num_completion_tokens)
        self._metrics.ended(job, outcome, result)
        log.info(
            "job_ended",
            status=outcome.status,
            finish_reason=outcome.finish_reason,
            tokens=outcome.num_completion_tokens,
            seconds=round(time.monotonic() - active.claimed_at, 3),
        )

    def _finish(self, job: JobRecord, outcome: Outcome) -> Outcome | None:
        """Write an outcome; one that no database can store fails the job instead."""
        try:
            return self._write(lambda: self._store.finish(job, outcome))
        except (Unstorable, Conflict):  # to try again would meet the same, and hold up all others
            log.exception("outcome_cannot_be_stored", status=outcome.status)
        failed = replace(
            outcome,
            status="failed",
            text="",
            finish_reason="error",
            error_code="unstorable",
            error_message="The database cannot store the text that was written.",
            trace=None,
        )
        return self._write(lambda: self._store.finish(job, failed))

    def _give_back(self, job: JobRecord) -> None:
        """The engine is gone: no fault of the job's, and no use in claiming another."""
        is_leaving = self._closing.is_set()
        self.close()
        self._write(lambda: self._store.release(job))
        log.warning("job_released", reason="the engine has stopped")
        if not is_leaving:
            self._on_dead_engine()

    @staticmethod
    def _retries(job: JobRecord, result: GenerationResult) -> bool:
        """Whether an error may be a neighbour's fault: then the job is tried again, alone."""
        is_own_fault = isinstance(result.error, TextmillError) and getattr(
            result.error, "is_permanent", False
        )
        return not is_own_fault and job.lost_count + 1 < MAX_ERRORS

    def _outcome(self, job: JobRecord, result: GenerationResult) -> Outcome:
        statuses = {"canceled": "canceled", "error": "failed", "deadline": "failed"}
        error_code = error_message = None
        if result.finish_reason == "error":
            error_code, error_message = _code(result.error), storable(str(result.error)[:1000])
        elif result.finish_reason == "deadline":
            error_code, error_message = "deadline", "The text was not done by the job's deadline."
        return Outcome(
            status=statuses.get(result.finish_reason, "succeeded"),
            text=storable(result.text),
            finish_reason=result.finish_reason,
            num_prompt_tokens=result.num_prompt_tokens or None,
            num_completion_tokens=result.num_completion_tokens,
            first_token_seconds=result.first_token_seconds,
            model_revision=self._revisions.get(job.model),
            error_code=error_code,
            error_message=error_message,
            trace=_trace_json(result),
        )

    def _write(self, write: Callable[[], Written]) -> Written | None:
        """Write a result; while the database is away keep it, claim nothing, and try again.

        Returns:
            What the write returned; ``None`` when the worker gave it up.
        """
        is_waiting = False
        try:
            while True:
                try:
                    return write()
                except StorageUnavailable as error:
                    if not is_waiting:
                        is_waiting = True
                        with self._lock:
                            self._unwritten += 1
                        log.warning("result_waits_for_database", reason=str(error))
                    if self._giving_up.wait(RETRY_WRITE_SECONDS):
                        return None  # the lease runs out, and another worker repeats the job
        finally:
            if is_waiting:
                with self._lock:
                    self._unwritten -= 1

    def add_model(self, name: str, revision: str) -> None:
        """Claim jobs of one more model, which the engine holds by now."""
        self._revisions[name] = revision
        self.models = (*(model for model in self.models if model != name), name)

    # ---- what the heartbeat and the drain need ------------------------------------------------

    @property
    def num_active(self) -> int:
        """Jobs between claim and end."""
        with self._lock:
            return len(self._active)

    @property
    def num_free(self) -> int:
        """Slots in which nothing runs."""
        return max(0, self._engine.num_slots - self.num_active)

    def attempts(self) -> dict[str, int]:
        """The jobs that this worker holds: id → attempt."""
        with self._lock:
            return {job_id: active.job.attempt for job_id, active in self._active.items()}

    def progress(self) -> list[Progress]:
        """The running jobs whose text grew since the last call."""
        found = []
        with self._lock:
            actives = list(self._active.values())
        for active in actives:
            generation = active.generation
            if generation is None:
                continue
            text = storable(generation.text_so_far)
            if len(text) > active.saved_characters:
                active.saved_characters = len(text)
                found.append(
                    Progress(
                        job_id=active.job.id,
                        attempt=active.job.attempt,
                        text=text,
                        num_completion_tokens=generation.num_completion_tokens,
                        num_prompt_tokens=generation.num_prompt_tokens or None,
                    )
                )
        return found

    def stop_jobs(self, job_ids: frozenset[str], reason: str) -> None:
        """Make the engine drop jobs: ``canceled``, ``lost`` or ``released``."""
        with self._lock:
            chosen = [a for job_id, a in self._active.items() if job_id in job_ids]
            for active in chosen:
                active.stop_reason = active.stop_reason or reason
        for active in chosen:
            if active.generation is not None:
                active.generation.cancel(reason)

    def close(self) -> None:
        """Admit nothing more."""
        self._closing.set()

    def drain(self, seconds: float) -> None:
        """Let what runs go on for a while, then give the rest back to the queue."""
        self.close()
        if not self.wait_until_idle(seconds):
            self.stop_jobs(frozenset(self.attempts()), "released")
            if not self.wait_until_idle(3.0):
                self._giving_up.set()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until nothing runs; whether that came to be within the time."""
        with self._lock:
            return self._ended.wait_for(lambda: not self._active, timeout=seconds)


def _failed(error: Exception) -> GenerationResult:
    return GenerationResult(
        text="",
        finish_reason="error",
        num_prompt_tokens=0,
        num_completion_tokens=0,
        first_token_seconds=None,
        decode_seconds=0.0,
        trace=None,
        error=error,
    )


def _code(error: Exception | None) -> str:
    return str(getattr(error, "code", "internal"))


def _trace_json(result: GenerationResult) -> list[dict[str, Any]] | None:
    if result.trace is None:
        return None
    return [_storable_json(token.as_json()) for token in result.trace]


def _storable_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _storable_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable_json(item) for item in value]
    return storable(value) if isinstance(value, str) else value
