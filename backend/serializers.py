"""From rows to what clients see. Asks nothing of the database; the callers give it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from textmill.backend.streams.job_follower import Place, run_id_of
from textmill.core.catalog.finetunings import as_document
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.catalog.served_models import ServedModel
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.strategies import (
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    StrategySpec,
)

Document = dict[str, Any]


def instant(ms: int | None) -> str | None:
    """Milliseconds since 1970 as ISO 8601 in UTC."""
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def job_document(job: JobRecord, place: Document | None = None) -> Document:
    """A job; ``place`` is its ``queue`` while it is queued."""
    error = None
    if job.error_code is not None:
        error = {"code": job.error_code, "message": job.error_message or ""}
    base = f"/api/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "run_id": job.run_id,
        "status": job.status,
        "model": job.model,
        "prompt": job.prompt,
        "strategy": job.strategy,
        "parameters": job.parameters,
        "text": job.text,
        "finish_reason": job.finish_reason,
        "usage": {
            "prompt_tokens": job.num_prompt_tokens,
            "completion_tokens": job.num_completion_tokens,
        },
        "queue": place if job.status == "queued" else None,
        "error": error,
        "timings": _timings(job),
        "model_revision": job.model_revision,
        "attempt": job.attempt,
        "trace": job.has_trace,
        "cancel_requested": job.cancel_requested_at is not None,
        "variant_index": job.variant_index,
        "sample_index": job.sample_index,
        "cursor": job.cursor,
        "created_at": instant(job.created_at),
        "started_at": instant(job.started_at),
        "finished_at": instant(job.finished_at),
        "links": {
            "self": base,
            "events": f"{base}/events",
            "cancel": f"{base}/cancel",
            "page": f"/jobs/{job.id}",
            "trace": f"{base}/trace",
        },
    }


def _timings(job: JobRecord) -> Document:
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
    """The place in a run's event stream that its jobs' texts reach."""
    return run_id_of({job.number: Place(job.attempt, len(job.text)) for job in run.jobs})


def run_document(run: RunRecord, jobs: list[Document]) -> Document:
    """A run with its jobs' documents."""
    base = f"/api/v1/runs/{run.id}"
    return {
        "id": run.id,
        "prompt": run.prompt,
        "created_at": instant(run.created_at),
        "cursor": run_cursor(run),
        "jobs": jobs,
        "links": {"self": base, "events": f"{base}/events", "page": f"/runs/{run.id}"},
    }


def base_names(specs: Iterable[ModelSpec], cards: Mapping[str, ServedModel]) -> dict[str, str]:
    """For each fine-tuned model whose base is served too, the name of that."""
    known = list(specs)
    found = {}
    for spec in known:
        card = cards.get(spec.name)
        if card is None or card.finetuning is None:
            continue
        for other in known:
            base = cards.get(other.name)
            if base is None and other.adapter is not None:
                continue  # its source alone would be another model
            revision = base.revision if base else None
            if other is not spec and card.finetuning.is_from(
                source=other.source, revision=revision
            ):
                found[spec.name] = other.name
                break
    return found


def model_document(
    spec: ModelSpec,
    card: ServedModel | None,
    num_loaded: int,
    *,
    is_default: bool,
    base_model: str | None = None,
) -> Document:
    """A model of the models file, with what a worker found out about it.

    ``base_model`` is the name of the model that it was fine-tuned from, where that is served.
    """
    finetuning = None
    if card is not None and card.finetuning is not None:
        finetuning = as_document(card.finetuning) | {"base_model": base_model}
    page = f"/models/{spec.name}"
    return {
        "name": spec.name,
        "description": spec.description,
        "default": is_default,
        "family": card.family if card else None,
        "path": card.path if card else None,
        "parameters": card.num_parameters if card else None,
        "context_length": card.context_length if card else None,
        "vocabulary_size": card.vocabulary_size if card else None,
        "dtype": card.dtype if card else None,
        "revision": card.revision if card else None,
        "loaded_by": num_loaded,
        "finetuning": finetuning,
        "links": {
            "curve": f"{page}/loss.svg" if card is not None and card.has_curve else None,
            "card": f"{page}/card" if card is not None and card.has_text else None,
        },
    }


_COMMON: tuple[Document, ...] = (
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
        "description": "The same seed gives the same text; drawn and stored when left out.",
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


def strategy_document(spec: StrategySpec) -> Document:
    """A strategy with its own parameters and the common ones."""
    own: list[Mapping[str, Any]] = [asdict(parameter) for parameter in spec.parameters]
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "parameters": [*own, *_COMMON],
    }
