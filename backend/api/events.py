"""/jobs/{id}/events and /runs/{id}/events: server-sent events that resume where they were cut."""

from __future__ import annotations

from flask import Blueprint, Response, request, stream_with_context

from backend.api import services
from backend.event_stream import (
    UNKNOWN_PLACE,
    Place,
    has_everything,
    parse_place,
    parse_run_places,
)
from backend.query import parse_query, text_of
from backend.watching import Watch
from core.errors import ValidationFailed
from core.records import JobRecord

_PARAMETERS = {"after": text_of(8_000)}  # a run's: the places in 64 jobs
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
    places = _places(jobs, is_run=is_run)
    told = zip(jobs, places, strict=True)
    if jobs and all(has_everything(job, place) for job, place in told):
        return Response(status=204)  # tells an EventSource to come back no more
    watch = Watch(services(), jobs, places, is_run=is_run)
    response = Response(
        stream_with_context(watch.lines()), content_type="text/event-stream; charset=utf-8"
    )
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _places(jobs: list[JobRecord], *, is_run: bool) -> list[Place]:
    """The watcher's place in each job.

    The header wins: an EventSource that reconnects repeats its first address. A header that makes
    no sense must not end the stream, which a browser could never mend: the text begins anew.
    """
    header = request.headers.get("Last-Event-ID")
    if header:
        try:
            return _parse(header, jobs, is_run=is_run)
        except ValidationFailed:
            return [UNKNOWN_PLACE] * len(jobs)
    after = parse_query(
        request.args, _PARAMETERS, may_be_empty=_PARAMETERS, ignores_others=True
    ).get("after")
    return _parse(after, jobs, is_run=is_run) if after else [Place()] * len(jobs)


def _parse(text: str, jobs: list[JobRecord], *, is_run: bool) -> list[Place]:
    if not is_run:
        return [parse_place(text)]
    known = parse_run_places(text)
    return [known.get(job.number, Place()) for job in jobs]
