"""Claim → decode → finish: the work that a ticket or the poller starts.

The store decides which job runs, the engine how its text ends; this module connects the two. The
Celery task and the poller both call ``JobWorker.work``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from textmill.core.errors import StorageUnavailable
from textmill.core.failpoints import reach
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, Progress
from textmill.core.moderation import Moderator
from textmill.core.redaction import reason_of
from textmill.core.strategies import decoding_parameters
from textmill.engine import Delta, Generation, GenerationRequest, GenerationResult, InferenceEngine
from textmill.engine.requests import EngineStopped
from textmill.worker.intervals import Intervals
from textmill.worker.isolation import ANY_LOSSES, Admission, RunningJob, admission
from textmill.worker.metrics import WorkerMetrics
from textmill.worker.moderation import moderated
from textmill.worker.outcomes import code_of, failed_result, may_retry, outcome_of
from textmill.worker.publishing import JobStream, Publisher, storable
from textmill.worker.result_writer import ResultWriter

RELEASE_SECONDS = 3.0  # until a running job is back in the queue; then its lease must run out
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ActiveJob:
    """A job between its claim and its end; ``generation`` is ``None`` until it is submitted."""

    job: JobRecord
    claimed_at: float
    generation: Generation | None = None
    saved_characters: int = 0
    stop_reason: str | None = None


class JobWorker:
    """Runs jobs on an engine, as many at once as it has slots.

    Args:
        store: of the jobs.
        engine: decodes them.
        publisher: gets the text as it is written, for clients that follow jobs.
        metrics: counts claims and ends.
        worker_id: this worker in the rows of its jobs.
        revisions: the served models' names and revisions.
        on_dead_engine: called when the engine has died during a job, which is queued again by
            then; the worker can only exit.
        moderator: is asked before a text is shown; until then no part of it is.
        settled_seconds: a job that was lost before counts as harmless after this time.

    Attributes:
        models: names of the models whose jobs are claimed.
        is_blocked: whether jobs that were lost before wait until others have settled.
    """

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
        moderator: Moderator | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._results = ResultWriter(store)
        self._publisher = publisher
        self._metrics = metrics
        self._moderator = moderator
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
        self._closing = threading.Event()
        self.num_claimed = 0
        self.is_blocked = False

    # ---- running ----------------------------------------------------------------------------

    def work(self) -> int:
        """Run jobs until none can be claimed or no slot is free; returns their number."""
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
        """Claim a job; claims are serial, so that each one knows the jobs that run."""
        with self._claim_lock:
            if self._closing.is_set() or self._results.is_waiting:
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
                self.is_blocked = admitted.most_losses < ANY_LOSSES  # perhaps a lost job waits
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
        """Decode the job; every error becomes a result."""
        job = active.job

        def on_delta(delta: Delta) -> None:
            if self._moderator is None:
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
                    prompt_ids=None if job.prompt_ids is None else tuple(job.prompt_ids),
                ),
                on_delta,
            )
            with self._lock:
                active.generation = generation
                reason = active.stop_reason
            if reason is not None:  # stopped before it was submitted
                generation.cancel(reason)
            return moderated(self._moderator, job, generation.result())
        except Exception as error:  # the task edge: every job must get an end
            log.exception("decoding_failed", job_id=job.id)
            return failed_result(error)

    def _end(self, active: ActiveJob, result: GenerationResult, stream: JobStream) -> None:
        job = active.job
        if result.finish_reason == "lost":
            log.warning("job_lost")
            return
        if result.finish_reason == "released":
            self._results.release(job)
            log.info("job_released")
            return
        if isinstance(result.error, EngineStopped):
            self._release_for_dead_engine(job)
            return
        if result.finish_reason == "error" and may_retry(job, result):
            self._results.release(job, delay_seconds=1.0, counts_as_loss=True)
            reason = reason_of(result.error) if result.error else ""
            log.warning("job_retried", code=code_of(result.error), reason=reason)
            return
        made = outcome_of(result, self._revisions.get(job.model))
        reach("before_result", job.prompt)
        outcome = self._results.finish(job, made)
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

    def _release_for_dead_engine(self, job: JobRecord) -> None:
        """Return a job to the queue without a loss, and claim no further one."""
        is_leaving = self._closing.is_set()
        self.close()
        self._results.release(job)
        log.warning("job_released", reason="the engine has stopped")
        if not is_leaving:
            self._on_dead_engine()

    def add_model(self, name: str, revision: str) -> None:
        """Claim jobs of one more model, which the engine has loaded."""
        self._revisions[name] = revision
        self.models = (*(model for model in self.models if model != name), name)

    # ---- for the heartbeat and the drain ------------------------------------------------------

    @property
    def num_active(self) -> int:
        """The number of jobs between claim and end."""
        with self._lock:
            return len(self._active)

    @property
    def num_free(self) -> int:
        """The number of free slots."""
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
            if generation is None or self._moderator is not None:
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
        """Stop decoding some jobs; the reason is ``canceled``, ``lost`` or ``released``."""
        with self._lock:
            chosen = [a for job_id, a in self._active.items() if job_id in job_ids]
            for active in chosen:
                active.stop_reason = active.stop_reason or reason
        for active in chosen:
            if active.generation is not None:
                active.generation.cancel(reason)

    def close(self) -> None:
        """Claim no further jobs."""
        self._closing.set()

    def drain(self, seconds: float) -> None:
        """Let running jobs go on for ``seconds``, then return the rest to the queue."""
        until = time.monotonic() + seconds
        self.close()
        # A claim that has begun may still bring a job, which must not be missed.
        if self._claim_lock.acquire(timeout=max(seconds, RELEASE_SECONDS)):
            self._claim_lock.release()
        if not self.wait_until_idle(max(0.0, until - time.monotonic())):
            self.stop_jobs(frozenset(self.attempts()), "released")
            if not self.wait_until_idle(RELEASE_SECONDS):
                self._results.give_up()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no job runs; returns whether that happened within the time."""
        with self._lock:
            return self._ended.wait_for(lambda: not self._active, timeout=seconds)
