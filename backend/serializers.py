"""Converts records of jobs, runs and the queue to documents of ``backend.response_models``.

Does no I/O. ``backend.model_views`` and ``backend.strategy_views`` do the same for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from textmill.backend.response_models import (
    FinishReason,
    JobError,
    JobView,
    LeftOut,
    QueuePlace,
    QueueView,
    RunView,
    Timings,
)
from textmill.backend.streams.positions import StreamPosition, run_event_id
from textmill.core.jobs.history import QueueNumbers
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.problems import Kind, SeenProblem
from textmill.core.statuses import Status
from textmill.core.workers import SeenWorker


def instant(ms: int) -> str:
    """Format milliseconds since 1970 as ISO 8601 in UTC."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def _optional_instant(ms: int | None) -> str | None:
    return None if ms is None else instant(ms)


# ---- jobs and runs --------------------------------------------------------------------------


def job_view(job: JobRecord, position: QueuePlace | None = None) -> JobView:
    """Present a job; ``position`` is used while the job is queued."""
    base = f"/api/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "run_id": job.run_id,
        "status": cast(Status, job.status),
        "model": job.model,
        "prompt": job.prompt,
        "prompt_ids": job.prompt_ids,
        "strategy": job.strategy,
        "parameters": job.parameters,
        "text": job.text,
        "finish_reason": cast("FinishReason | None", job.finish_reason),
        "usage": {
            "prompt_tokens": job.num_prompt_tokens,
            "completion_tokens": job.num_completion_tokens,
        },
        "queue": position if job.status == "queued" else None,
        "error": _error(job),
        "timings": _timings(job),
        "model_revision": job.model_revision,
        "attempt": job.attempt,
        "trace": job.has_trace,
        "priority": job.priority,
        "starred": job.is_starred,
        "cancel_requested": job.cancel_requested_at is not None,
        "variant_index": job.variant_index,
        "sample_index": job.sample_index,
        "cursor": job.cursor,
        "created_at": instant(job.created_at),
        "started_at": _optional_instant(job.started_at),
        "finished_at": _optional_instant(job.finished_at),
        "links": {
            "self": base,
            "events": f"{base}/events",
            "cancel": f"{base}/cancel",
            "page": f"/jobs/{job.id}",
            "trace": f"{base}/trace",
        },
    }


def _error(job: JobRecord) -> JobError | None:
    if job.error_code is None:
        return None
    return {"code": job.error_code, "message": job.error_message or ""}


def _timings(job: JobRecord) -> Timings:
    def since_creation(ms: int | None) -> int | None:
        return None if ms is None else max(0, ms - job.created_at)

    rate = None
    if job.started_at is not None and job.finished_at is not None and job.num_completion_tokens:
        seconds = max(1, job.finished_at - job.started_at) / 1000
        rate = round(job.num_completion_tokens / seconds, 2)
    return {
        "queued_ms": since_creation(job.started_at),
        "first_token_ms": since_creation(job.first_token_at),
        "total_ms": since_creation(job.finished_at),
        "tokens_per_second": rate,
    }


def run_cursor(run: RunRecord) -> str:
    """Return the event id that the texts of the run's jobs reach."""
    return run_event_id(
        {job.number: StreamPosition(job.attempt, len(job.text)) for job in run.jobs}
    )


def run_view(run: RunRecord, jobs: list[JobView]) -> RunView:
    """Present a run with the views of its jobs."""
    base = f"/api/v1/runs/{run.id}"
    return {
        "id": run.id,
        "prompt": run.prompt,
        "created_at": instant(run.created_at),
        "cursor": run_cursor(run),
        "jobs": jobs,
        "links": {"self": base, "events": f"{base}/events", "page": f"/runs/{run.id}"},
    }


# ---- the queue ------------------------------------------------------------------------------


def queue_view(
    numbers: QueueNumbers,
    workers: Sequence[SeenWorker],
    problems: Sequence[SeenProblem],
    *,
    is_redis_up: bool,
) -> QueueView:
    """Present the state of the queue."""
    waits = numbers.waiting_seconds
    return {
        "depth": numbers.depth,
        "running": numbers.running,
        "workers": [
            {
                "id": worker.id,
                "models": list(worker.models),
                "last_seen": instant(worker.last_seen),
                "slots": worker.num_slots,
                "active": worker.num_active,
                "tokens_per_second": round(worker.tokens_per_second, 2),
            }
            for worker in workers
        ],
        "throughput": {
            "jobs_per_minute": round(numbers.jobs_per_minute, 2),
            "tokens_per_second": round(numbers.tokens_per_second, 2),
        },
        "waiting": {
            "median_seconds": waits[len(waits) // 2] if waits else None,
            "p90_seconds": waits[int(len(waits) * 0.9)] if waits else None,
        },
        "redis": "ok" if is_redis_up else "degraded",
        "problems": [_left_out(problem) for problem in problems],
    }


def _left_out(problem: SeenProblem) -> LeftOut:
    return {
        "host": problem.host,
        "kind": cast(Kind, problem.kind),
        "name": problem.name,
        "reason": problem.reason,
        "at": instant(problem.at),
    }
