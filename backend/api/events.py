"""/jobs/{id}/events and /runs/{id}/events: server-sent events that a client can resume."""

from __future__ import annotations

import time

from flask import Blueprint, Response, request

from textmill.backend.current import services
from textmill.backend.query import parse_query, text_of
from textmill.backend.server.hold import Hold
from textmill.backend.streams.positions import (
    UNKNOWN_POSITION,
    StreamPosition,
    has_everything,
    parse_event_id,
    parse_run_event_id,
)
from textmill.backend.streams.responses import reserve, stream
from textmill.backend.streams.sse import StreamSpec
from textmill.core.errors import ValidationFailed
from textmill.core.jobs.records import JobRecord

_PARAMETERS = {"after": text_of(8_000)}  # enough for the event id of a run with 64 jobs
blueprint = Blueprint("events", __name__)


@blueprint.get("/jobs/<job_id>/events")
def of_job(job_id: str) -> Response:
    """Stream the events of a job."""
    hold, read_at = reserve(request), time.monotonic()
    return _stream([services().jobs.record(job_id)], hold, read_at, is_run=False)


@blueprint.get("/runs/<run_id>/events")
def of_run(run_id: str) -> Response:
    """Stream the events of all jobs of a run."""
    hold, read_at = reserve(request), time.monotonic()
    return _stream(services().runs.records(run_id), hold, read_at, is_run=True)


def _stream(jobs: list[JobRecord], hold: Hold | None, read_at: float, *, is_run: bool) -> Response:
    positions = _positions(jobs, is_run=is_run)
    pairs = zip(jobs, positions, strict=True)
    if jobs and all(has_everything(job, position) for job, position in pairs):
        return Response(status=204)  # makes an EventSource stop reconnecting
    queue_positions = services().positions.read(jobs)
    spec = StreamSpec(
        tuple(jobs), tuple(positions), queue_positions, is_run=is_run, read_at=read_at
    )
    return stream(services(), hold, spec)


def _positions(jobs: list[JobRecord], *, is_run: bool) -> list[StreamPosition]:
    """Return the reader's position in each job.

    The header wins over the query, because an EventSource reconnects with the query of its first
    request. An invalid header restarts the text instead of failing, because a browser would repeat
    it forever.
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
    return _parse(after, jobs, is_run=is_run) if after else [StreamPosition()] * len(jobs)


def _parse(text: str, jobs: list[JobRecord], *, is_run: bool) -> list[StreamPosition]:
    if not is_run:
        return [parse_event_id(text)]
    known = parse_run_event_id(text)
    return [known.get(job.number, StreamPosition()) for job in jobs]
