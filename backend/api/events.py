"""/jobs/{id}/events and /runs/{id}/events: server-sent events that resume where they were cut."""

from __future__ import annotations

import contextlib

from flask import Blueprint, Response, request, stream_with_context

from backend.api import services
from backend.event_stream import Place, has_everything, parse_places
from backend.watching import Watch
from core.errors import ValidationFailed
from core.records import JobRecord

blueprint = Blueprint("events", __name__)


@blueprint.get("/jobs/<job_id>/events")
def of_job(job_id: str) -> Response:
    """What is written to a job, as it comes."""
    return _watch([services().job(job_id)], is_run=False)


@blueprint.get("/runs/<run_id>/events")
def of_run(run_id: str) -> Response:
    """What is written to the jobs of a run, in one stream."""
    return _watch(services().run_jobs(run_id), is_run=True)


def _watch(jobs: list[JobRecord], *, is_run: bool) -> Response:
    places = _places(len(jobs))
    told = zip(jobs, places, strict=True)
    if jobs and all(has_everything(job, place) for job, place in told):
        return Response(status=204)  # tells an EventSource to come back no more
    watch = Watch(services(), [job.id for job in jobs], places, is_run=is_run)
    response = Response(
        stream_with_context(watch.lines()), content_type="text/event-stream; charset=utf-8"
    )
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _places(num_jobs: int) -> list[Place]:
    """The header wins: an EventSource that reconnects repeats its first address."""
    header = request.headers.get("Last-Event-ID")
    if header:
        with contextlib.suppress(ValidationFailed):
            return parse_places(header, num_jobs)
    after = request.args.get("after")
    return parse_places(after, num_jobs) if after else [Place()] * num_jobs
