"""/jobs: submit, read, wait, cancel, delete, list, export, trace."""

from __future__ import annotations

import hashlib
import time

from flask import Blueprint, Response, request, stream_with_context

from textmill.backend.api import json_response, services
from textmill.backend.bodies import read_json
from textmill.backend.exporting import as_csv, as_jsonl
from textmill.backend.history_filters import parse_export, parse_filters
from textmill.backend.owner import owner_id
from textmill.backend.query import decimal, parse_query
from textmill.backend.streams.holding import reserve, wait
from textmill.backend.streams.sse import WaitOrder

MAX_WAIT_SECONDS = 30.0
_READ_PARAMETERS = {"wait": decimal(0, MAX_WAIT_SECONDS, "seconds")}
_FORMATS = {"jsonl": (as_jsonl, "application/jsonl"), "csv": (as_csv, "text/csv")}
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
    seconds = parse_query(request.args, _READ_PARAMETERS, ignores_others=True).get("wait", 0.0)
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
    return json_response(services().list_jobs(parse_filters(request.args)))


@blueprint.get("/jobs/export")
def export() -> Response:
    """The history as JSON lines or CSV, streamed."""
    form, filters = parse_export(request.args)
    write, kind = _FORMATS[form]
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
