"""/jobs/{id}/events and /runs/{id}/events: server-sent events that resume where they were cut."""

from __future__ import annotations

import time

from flask import Blueprint, Response, request

from textmill.backend.api import services
from textmill.backend.query import parse_query, text_of
from textmill.backend.server.hold import Hold
from textmill.backend.streams.holding import reserve, stream
from textmill.backend.streams.job_follower import (
    UNKNOWN_POSITION,
    Place,
    has_everything,
    parse_place,
    parse_run_places,
)
from textmill.backend.streams.sse import WatchOrder
from textmill.core.errors import ValidationFailed
from textmill.core.jobs.records import JobRecord

_PARAMETERS = {"after": text_of(8_000)}  # a run's: the places in 64 jobs
blueprint = Blueprint("events", __name__)


@blueprint.get("/jobs/<job_id>/events")
def of_job(job_id: str) -> Response:
    """What is written to a job, as it comes."""
    hold, read_at = reserve(request), time.monotonic()
    return _watch([services().job(job_id)], hold, read_at, is_run=False)


@blueprint.get("/runs/<run_id>/events")
def of_run(run_id: str) -> Response:
    """What is written to the jobs of a run, in one stream."""
    hold, read_at = reserve(request), time.monotonic()
    return _watch(services().run_jobs(run_id), hold, read_at, is_run=True)


def _watch(jobs: list[JobRecord], hold: Hold | None, read_at: float, *, is_run: bool) -> Response:
    places = _places(jobs, is_run=is_run)
    told = zip(jobs, places, strict=True)
    if jobs and all(has_everything(job, place) for job, place in told):
        return Response(status=204)  # tells an EventSource to come back no more
    order = WatchOrder(
        tuple(jobs), tuple(places), services().places(jobs), is_run=is_run, read_at=read_at
    )
    return stream(services(), hold, order)


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
            return [UNKNOWN_POSITION] * len(jobs)
    after = parse_query(
        request.args, _PARAMETERS, may_be_empty=_PARAMETERS, ignores_others=True
    ).get("after")
    return _parse(after, jobs, is_run=is_run) if after else [Place()] * len(jobs)


def _parse(text: str, jobs: list[JobRecord], *, is_run: bool) -> list[Place]:
    if not is_run:
        return [parse_place(text)]
    known = parse_run_places(text)
    return [known.get(job.number, Place()) for job in jobs]
