"""A fake engine and a fake store, controlled by tests of the parts between the two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from textmill.core.errors import StorageUnavailable
from textmill.core.events import StreamEntry
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import LeaseStatus, Outcome, Progress
from textmill.engine import Delta, Generation, GenerationRequest, GenerationResult
from textmill.worker.job_worker import JobWorker
from textmill.worker.metrics import WorkerMetrics

WAIT_SECONDS = 10.0


def make_job(number: int = 1, **values: Any) -> JobRecord:
    """A running job as a claim returns it."""
    columns: dict[str, Any] = dict.fromkeys(JobRecord.__dataclass_fields__)
    columns |= {
        "number": number,
        "id": f"job-{number}",
        "owner_id": "anna",
        "model": "m",
        "prompt": "once",
        "strategy": "greedy",
        "parameters": {"max_new_tokens": 4, "seed": 1, "stop": [], "repetition_penalty": 1.0},
        "has_trace": False,
        "status": "running",
        "priority": 0,
        "virtual_start": number,
        "attempt": 1,
        "lost_count": 0,
        "not_before": 0,
        "deadline_at": 10_000_000,
        "worker_id": "w",
        "text": "",
        "num_completion_tokens": 0,
        "created_at": 1_000,
        "started_at": 2_000,
        "is_starred": False,
    }
    return JobRecord(**(columns | values))


def result(reason: str = "length", text: str = "there was", **values: Any) -> GenerationResult:
    found = GenerationResult(
        text=text,
        finish_reason=reason,
        num_prompt_tokens=2,
        num_completion_tokens=4,
        first_token_seconds=0.1,
        decode_seconds=0.2,
        trace=None,
        error=None,
    )
    return replace(found, **values)


@dataclass
class FakeEngine:
    """Keeps each request until the test ends it; raises ``refuses`` instead if that is set."""

    num_slots: int = 2
    refuses: Exception | None = None
    step_count: int = 0
    num_active: int = 0
    num_waiting: int = 0
    given: dict[str, Generation] = field(default_factory=dict)
    on_delta: dict[str, Callable[[Delta], None]] = field(default_factory=dict)
    requests: list[GenerationRequest] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def submit(self, request: GenerationRequest, on_delta: Callable[[Delta], None]) -> Generation:
        if self.refuses is not None:
            raise self.refuses
        generation = Generation(request, num_prompt_tokens=2)
        with self.arrived:
            self.requests.append(request)
            self.given[request.job_id] = generation
            self.on_delta[request.job_id] = on_delta
            self.arrived.notify_all()
        return generation

    def write(self, job_id: str, text: str) -> None:
        generation = self.given[job_id]
        generation.text_so_far += text
        generation.num_completion_tokens += 1
        self.on_delta[job_id](Delta(text, generation.num_completion_tokens))

    def end(self, job_id: str, ended: GenerationResult) -> None:
        self.given[job_id].finish(ended)

    def end_canceled(self) -> None:
        """End the generations that are to be canceled, as the engine does at its next step."""
        for generation in self.given.values():
            if generation.cancel_reason and not generation.done():
                generation.finish(result(generation.cancel_reason, generation.text_so_far))

    def await_job(self, job_id: str) -> Generation:
        with self.arrived:
            assert self.arrived.wait_for(lambda: job_id in self.given, WAIT_SECONDS)
        return self.given[job_id]

    def statistics(self) -> SimpleNamespace:
        return SimpleNamespace(tokens_per_second=7.0, mean_occupancy=0.5)


@dataclass
class FakeStore:
    """A queue in memory; ``is_away`` makes every call fail as an unreachable database does."""

    queued: list[JobRecord] = field(default_factory=list)
    is_away: bool = False
    fenced: set[str] = field(default_factory=set)
    finished: list[tuple[str, Outcome]] = field(default_factory=list)
    released: list[tuple[str, float, bool]] = field(default_factory=list)
    saved: list[Progress] = field(default_factory=list)
    renewed: list[dict[str, int]] = field(default_factory=list)
    answer: LeaseStatus = field(default_factory=lambda: LeaseStatus(frozenset(), frozenset()))
    num_claims: int = 0
    asked_for: list[tuple[str, ...]] = field(default_factory=list)
    refused: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def _check(self) -> None:
        if self.is_away:
            self.refused.set()
            raise StorageUnavailable("away", retry_after_seconds=1)

    def claim(
        self,
        worker_id: str,
        models: Sequence[str],
        *,
        most_losses: int,
        waits_for_first: bool,
    ) -> JobRecord | None:
        self.num_claims += 1
        self.asked_for.append(tuple(models))
        self._check()
        if self.queued and self.queued[0].lost_count > most_losses and waits_for_first:
            return None
        for index, job in enumerate(self.queued):
            if job.lost_count <= most_losses:
                return self.queued.pop(index)
        return None

    def finish(self, job: JobRecord, outcome: Outcome) -> Outcome | None:
        self._check()
        if job.id in self.fenced:
            return None
        with self.changed:
            self.finished.append((job.id, outcome))
            self.changed.notify_all()
        return outcome

    def release(
        self, job: JobRecord, *, delay_seconds: float = 0.0, counts_as_loss: bool = False
    ) -> bool:
        self._check()
        with self.changed:
            self.released.append((job.id, delay_seconds, counts_as_loss))
            self.changed.notify_all()
        return True

    def save_progress(self, worker_id: str, progress: Sequence[Progress]) -> None:
        self._check()
        self.saved += progress

    def lease_status(self, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
        self._check()
        return self.answer

    def renew(self, worker_id: str, attempts: dict[str, int]) -> LeaseStatus:
        self._check()
        self.renewed.append(attempts)
        return self.answer


@dataclass
class FakePublisher:
    """Keeps the entries."""

    entries: list[StreamEntry] = field(default_factory=list)

    def add(self, entry: StreamEntry) -> None:
        self.entries.append(entry)

    def text(self, job_id: str) -> str:
        return "".join(entry.text for entry in self.entries if entry.job_id == job_id)

    def kinds(self, job_id: str) -> list[str]:
        return [entry.kind for entry in self.entries if entry.job_id == job_id]


@dataclass
class RunnerBench:
    """A runner with its fakes, and threads that work for it."""

    store: FakeStore = field(default_factory=FakeStore)
    engine: FakeEngine = field(default_factory=FakeEngine)
    publisher: FakePublisher = field(default_factory=FakePublisher)
    threads: list[threading.Thread] = field(default_factory=list)
    num_run: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runner = JobWorker(
            store=self.store,  # type: ignore[arg-type]
            engine=self.engine,  # type: ignore[arg-type]
            publisher=self.publisher,  # type: ignore[arg-type]
            metrics=WorkerMetrics(),
            worker_id="w",
            revisions={"m": "r1"},
        )

    def work(self) -> threading.Thread:
        """Let a thread work, as a ticket or the poller does."""
        thread = threading.Thread(target=lambda: self.num_run.append(self.runner.work()))
        thread.start()
        self.threads.append(thread)
        return thread

    def start(self, job: JobRecord) -> Generation:
        """Queue a job, let a thread claim it, and wait until the engine has it."""
        self.store.queued.append(job)
        self.work()
        return self.engine.await_job(job.id)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()
