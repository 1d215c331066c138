"""/jobs: submit, read, wait, cancel, delete, list, export, trace."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request, stream_with_context

from backend.api import json_response, query_filters, services
from backend.bodies import read_json
from backend.holding import reserve, wait
from backend.owner import owner_id
from backend.watching import WaitOrder
from core.errors import FieldError, ValidationFailed

MAX_WAIT_SECONDS = 30.0
CSV_COLUMNS = (
    "id", "created_at", "status", "model", "strategy", "parameters", "prompt", "text",
    "finish_reason", "prompt_tokens", "completion_tokens", "run_id",
)  # fmt: skip
# Spreadsheets take a cell that begins so for a formula; a quote in front keeps it text.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
blueprint = Blueprint("jobs", __name__)


@blueprint.post("/jobs")
def submit() -> Response:
    """Store a job: 202."""
    job = services().submit_job(
        read_json(request),
        owner_id=owner_id(request),
        idempotency_key=request.headers.get("Idempotency-Key"),
    )
    return json_response(job, 202, {"Location": job["links"]["self"]})


@blueprint.get("/jobs/<job_id>")
def read(job_id: str) -> Response:
    """A job; ``?wait=`` holds the answer until it has ended or the time is up."""
    seconds = _wait_seconds(request.args.get("wait"))
    if seconds and (placeholder := _wait(job_id, seconds)) is not None:
        return placeholder
    response = json_response(services().get_job(job_id))
    response.set_etag(hashlib.sha256(response.get_data()).hexdigest()[:32])
    response.headers["Cache-Control"] = "private, no-cache"
    return response.make_conditional(request)  # type: ignore[return-value]


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """Ask a job to stop: 202, or 409 when it has ended."""
    return json_response(services().cancel_job(job_id), 202)


@blueprint.delete("/jobs/<job_id>")
def delete(job_id: str) -> Response:
    """Remove a job: 204."""
    services().delete_job(job_id)
    return Response(status=204)


@blueprint.get("/jobs/<job_id>/trace")
def trace(job_id: str) -> Response:
    """Why each token was chosen."""
    return json_response(services().trace(job_id))


@blueprint.get("/jobs")
def index() -> Response:
    """A page of the history."""
    return json_response(services().list_jobs(query_filters(request)))


@blueprint.get("/jobs/export")
def export() -> Response:
    """The history as JSON lines or CSV, streamed."""
    filters = query_filters(request)
    form = filters.pop("format", "jsonl")
    writers = {"jsonl": (_as_jsonl, "application/jsonl"), "csv": (_as_csv, "text/csv")}
    if form not in writers:
        raise ValidationFailed([FieldError("format", "must be jsonl or csv")])
    unfit = [name for name in ("limit", "cursor") if name in filters]
    if unfit:
        raise ValidationFailed([FieldError(name, "an export has no pages") for name in unfit])
    write, kind = writers[form]
    lines = write(services().export(filters))
    response = Response(stream_with_context(lines), content_type=f"{kind}; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="textmill.{form}"'
    return response


def _wait(job_id: str, seconds: float) -> Response | None:
    """Wait for the job's end; a response where the view is asked again after the wait."""
    hold, read_at = reserve(request), time.monotonic()
    if hold is not None and hold.is_over:
        return None
    job = services().job(job_id)
    if job.is_final:
        return None
    return wait(services(), hold, WaitOrder(job, seconds, read_at))


def _wait_seconds(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        message = f"must be a number of seconds from 0 to {MAX_WAIT_SECONDS:g}"
        raise ValidationFailed([FieldError("wait", message)])
    return seconds


def _as_jsonl(jobs: Iterator[dict[str, Any]]) -> Iterator[str]:
    for job in jobs:
        yield json.dumps(job, ensure_ascii=False) + "\n"


def _as_csv(jobs: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield _csv_line(CSV_COLUMNS)
    for job in jobs:
        flat = job | job["usage"] | {"parameters": json.dumps(job["parameters"])}
        yield _csv_line(tuple(_cell(flat[name]) for name in CSV_COLUMNS))


def _csv_line(cells: tuple[Any, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return value
