"""/jobs: submit, read, wait, cancel, delete, star, list, export and trace."""

from __future__ import annotations

import hashlib
import time

from flask import Blueprint, Response, request, stream_with_context

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import principal, services
from textmill.backend.exporting import as_csv, as_jsonl
from textmill.backend.history_filters import parse_export, parse_filters
from textmill.backend.query import decimal, parse_query
from textmill.backend.streams.responses import reserve, wait
from textmill.backend.streams.sse import WaitSpec

MAX_WAIT_SECONDS = 30.0
_READ_PARAMETERS = {"wait": decimal(0, MAX_WAIT_SECONDS, "seconds")}
_FORMATS = {"jsonl": (as_jsonl, "application/jsonl"), "csv": (as_csv, "text/csv")}
blueprint = Blueprint("jobs", __name__)


@blueprint.post("/jobs")
def submit() -> Response:
    """Store a job: 202."""
    job = services().submission.submit_job(
        read_json(request),
        owner_id=principal().owner_id,
        idempotency_key=request.headers.get("Idempotency-Key"),
    )
    return json_response(job, 202, {"Location": job["links"]["self"]})


@blueprint.get("/jobs/<job_id>")
def read(job_id: str) -> Response:
    """Return a job; ``?wait=`` delays the response until it ends or the time is up."""
    seconds = parse_query(request.args, _READ_PARAMETERS, ignores_others=True).get("wait", 0.0)
    if seconds and (placeholder := _wait(job_id, seconds)) is not None:
        return placeholder
    response = json_response(services().jobs.read(job_id))
    response.set_etag(hashlib.sha256(response.get_data()).hexdigest()[:32])
    response.headers["Cache-Control"] = "private, no-cache"
    return response.make_conditional(request)  # type: ignore[return-value]


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """Cancel a job: 202, or 409 if it has ended."""
    return json_response(services().jobs.cancel(job_id), 202)


@blueprint.delete("/jobs/<job_id>")
def delete(job_id: str) -> Response:
    """Delete a job: 204."""
    services().jobs.delete(job_id)
    return Response(status=204)


@blueprint.post("/jobs/<job_id>/star")
def star(job_id: str) -> Response:
    """Star a job, so that it does not expire."""
    return json_response(services().jobs.star(job_id, is_starred=True))


@blueprint.delete("/jobs/<job_id>/star")
def unstar(job_id: str) -> Response:
    """Take the star of a job away."""
    return json_response(services().jobs.star(job_id, is_starred=False))


@blueprint.get("/jobs/<job_id>/trace")
def trace(job_id: str) -> Response:
    """Return the trace of a job."""
    return json_response(services().jobs.trace(job_id))


@blueprint.get("/jobs")
def index() -> Response:
    """Return a page of the history."""
    return json_response(services().jobs.page(parse_filters(request.args)))


@blueprint.get("/jobs/export")
def export() -> Response:
    """Stream the history as JSON Lines or CSV."""
    form, filters = parse_export(request.args)
    write, kind = _FORMATS[form]
    lines = write(services().jobs.export(filters))
    response = Response(stream_with_context(lines), content_type=f"{kind}; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="textmill.{form}"'
    return response


def _wait(job_id: str, seconds: float) -> Response | None:
    """Wait for the end of a job; a response is a placeholder to be returned by the view."""
    hold, read_at = reserve(request), time.monotonic()
    if hold is not None and hold.is_over:
        return None
    job = services().jobs.record(job_id)
    if job.is_final:
        return None
    return wait(services(), hold, WaitSpec((job,), seconds, read_at))
