"""Converts records to the documents of ``backend.response_models``. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

from textmill.backend.response_models import (
    FinishReason,
    JobError,
    JobView,
    ModelView,
    ParameterView,
    QueuePlace,
    QueueView,
    RunView,
    StrategyView,
    Timings,
)
from textmill.backend.streams.positions import StreamPosition, run_event_id
from textmill.core.catalog.finetunings import as_document
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.catalog.served_models import ServedModel
from textmill.core.jobs.history import QueueNumbers
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.problems import Kind, SeenProblem
from textmill.core.statuses import Status
from textmill.core.strategies import (
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    STRATEGIES,
    StrategySpec,
)
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
        "problems": [
            {
                "host": problem.host,
                "kind": cast(Kind, problem.kind),
                "name": problem.name,
                "reason": problem.reason,
                "at": instant(problem.at),
            }
            for problem in problems
        ],
    }


# ---- models ---------------------------------------------------------------------------------


def base_names(specs: Iterable[ModelSpec], served: Mapping[str, ServedModel]) -> dict[str, str]:
    """Return the name of the base of each fine-tuned model whose base is served too."""
    known = list(specs)
    found = {}
    for spec in known:
        base = _base_of(spec, known, served)
        if base is not None:
            found[spec.name] = base
    return found


def _base_of(
    spec: ModelSpec, known: Sequence[ModelSpec], served: Mapping[str, ServedModel]
) -> str | None:
    model = served.get(spec.name)
    if model is None or model.finetuning is None:
        return None
    for other in known:
        base = served.get(other.name)
        if other is spec or (base is None and other.adapter is not None):
            continue  # before it is loaded, a model with an adapter is known by its source alone
        revision = base.revision if base else None
        if model.finetuning.is_from(source=other.source, revision=revision):
            return other.name
    return None


def model_view(
    spec: ModelSpec,
    served: ServedModel | None,
    num_loaded: int,
    *,
    is_default: bool,
    base_model: str | None = None,
) -> ModelView:
    """Present a model of the models file.

    Args:
        spec: its entry in the models file.
        served: what a worker reported when it loaded the model.
        num_loaded: number of workers that have it loaded.
        is_default: whether it is the default model.
        base_model: the name of the served model that it was fine-tuned from.
    """
    finetuning = None
    if served is not None and served.finetuning is not None:
        finetuning = as_document(served.finetuning) | {"base_model": base_model}
    page = f"/models/{spec.name}"
    return {
        "name": spec.name,
        "description": spec.description,
        "default": is_default,
        "family": served.family if served else None,
        "path": served.path if served else None,
        "parameters": served.num_parameters if served else None,
        "context_length": served.context_length if served else None,
        "vocabulary_size": served.vocabulary_size if served else None,
        "dtype": served.dtype if served else None,
        "instruction_set": served.instruction_set if served else None,
        "kernels_note": served.kernels_note if served else None,
        "revision": served.revision if served else None,
        "loaded_by": num_loaded,
        "finetuning": finetuning,
        "links": {
            "curve": f"{page}/loss.svg" if served is not None and served.has_curve else None,
            "card": f"{page}/card" if served is not None and served.has_text else None,
        },
    }


# ---- strategies -----------------------------------------------------------------------------

_COMMON: tuple[ParameterView, ...] = (
    {
        "name": "max_new_tokens",
        "type": "integer",
        "default": MAX_NEW_TOKENS.default,
        "minimum": 1,
        "maximum": None,
        "exclusive_minimum": False,
        "title": MAX_NEW_TOKENS.title,
        "description": MAX_NEW_TOKENS.description,
    },
    {
        "name": "seed",
        "type": "integer",
        "default": None,
        "minimum": 0,
        "maximum": MAX_SEED,
        "exclusive_minimum": False,
        "title": "Seed",
        "description": "The same seed gives the same text. Without one, a random seed is stored.",
    },
    {
        "name": "stop",
        "type": "array",
        "default": [],
        "minimum": None,
        "maximum": MAX_STOP_STRINGS,
        "exclusive_minimum": False,
        "title": "Stop at",
        "description": "The text ends before any of these strings.",
    },
)


def strategy_views() -> list[StrategyView]:
    """Present all strategies."""
    return [strategy_view(spec) for spec in STRATEGIES]


def strategy_view(spec: StrategySpec) -> StrategyView:
    """Present a strategy with its own parameters and the common ones."""
    own: list[ParameterView] = [
        {
            "name": parameter.name,
            "type": parameter.type,
            "default": parameter.default,
            "minimum": parameter.minimum,
            "maximum": parameter.maximum,
            "exclusive_minimum": parameter.exclusive_minimum,
            "title": parameter.title,
            "description": parameter.description,
        }
        for parameter in spec.parameters
    ]
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "parameters": [*own, *_COMMON],
    }
