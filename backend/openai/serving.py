"""Serves a completion of any kind: stores its jobs, then streams them or waits for their end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from flask import Response, request

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import access, principal, services
from textmill.backend.openai.fields import IGNORED_HEADER, DecodingFields
from textmill.backend.openai.streaming import ChunkWriter, CompletionSpec
from textmill.backend.request_context import RequestContext
from textmill.backend.run_requests import PlannedJob
from textmill.backend.services.container import Services
from textmill.backend.services.idempotency import body_hash, checked_key
from textmill.backend.streams.responses import reserve, stream, wait
from textmill.backend.streams.sse import WaitSpec
from textmill.core.errors import ClientError, NotFound, Unavailable
from textmill.core.jobs.admission import Origin
from textmill.core.jobs.records import JobRecord, RunRecord

WAIT_SECONDS = 590.0  # the OpenAI client gives up after 600
RETRY_SECONDS = 5


class TextFailed(ClientError):
    """The job of a completion has failed; asking again would fail again."""

    code = "failed"
    http_status = 400


class TextLate(Unavailable):
    """The text was not finished in the time that clients wait."""

    code = "timeout"


class Writer(ChunkWriter, Protocol):
    """Writes the documents of one request."""

    def whole(self, jobs: Sequence[JobRecord]) -> dict[str, Any]:
        """The document of all texts."""


class Asked(Protocol):
    """A validated request of any kind."""

    @property
    def fields(self) -> DecodingFields:
        """The fields of all kinds."""

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""

    def plan(self, found: Services, context: RequestContext) -> list[PlannedJob]:
        """The jobs; ValidationFailed names every invalid field as the client calls it."""

    def writer(self, run_id: str, found: Services) -> Writer:
        """The writer of its documents."""


def serve(parse: Callable[[Any], Asked]) -> Response:
    """Answer the current request.

    Args:
        parse: validates its body.
    """
    hold, read_at = reserve(request), time.monotonic()
    if hold is not None and hold.is_over:
        return _answer(*cast("tuple[Asked, str]", hold.memo))
    payload = read_json(request)
    asked = parse(payload)
    run = submit(asked, payload)
    leave = _leaver(services(), run.jobs)
    if asked.fields.stream:
        spec = CompletionSpec(run.jobs, asked.writer(run.id, services()), read_at, leave)
        return labelled(stream(services(), hold, spec), run.id, asked.ignored)
    waiting = WaitSpec(run.jobs, WAIT_SECONDS, read_at, leave)
    return wait(services(), hold, waiting, (asked, run.id)) or _answer(asked, run.id)


def submit(asked: Asked, payload: Any) -> RunRecord:
    """Store the jobs of a request as one run.

    Raises:
        NotFound: there is no such model.
        ValidationFailed, QueueFull, RateLimited: nothing was stored.
    """
    submission = services().submission
    context = submission.request_context()
    name = asked.fields.model
    if name is not None and name not in context.limits:
        known = ", ".join(context.limits)
        raise NotFound(f"The model {name[:100]!r} does not exist; the models are: {known}.")
    key = checked_key(request.headers.get("Idempotency-Key"))
    origin = Origin(principal().owner_id, key, body_hash(payload, key))
    return submission.submit_plans(asked.plan(services(), context), context, origin)


def _leaver(found: Services, jobs: Sequence[JobRecord]) -> Callable[[], None]:
    """A function that cancels jobs whose client has disconnected, where the setting says so."""
    cancels = access().cancels_abandoned
    ids = [job.id for job in jobs]

    def leave() -> None:
        for job_id in ids if cancels else ():
            with contextlib.suppress(ClientError):  # it has ended, or the database is away
                found.jobs.cancel(job_id)

    return leave


def labelled(response: Response, request_id: str, ignored: Sequence[str]) -> Response:
    """Add the headers of all completions."""
    response.headers["x-request-id"] = request_id
    if ignored:
        names = ", ".join(name[:64] for name in ignored[:32])
        response.headers[IGNORED_HEADER] = names.encode("ascii", "replace").decode("ascii")
    return response


def _answer(asked: Asked, run_id: str) -> Response:
    jobs = services().runs.records(run_id)
    check_ended(jobs)
    document = asked.writer(run_id, services()).whole(jobs)
    return labelled(json_response(document), run_id, asked.ignored)


def check_ended(jobs: Sequence[JobRecord]) -> None:
    """Check that all jobs have their texts.

    Raises:
        TextFailed: one has failed.
        TextLate: one has not ended.
    """
    for job in jobs:
        if not job.is_final:
            raise TextLate(
                f"The text was not finished within {WAIT_SECONDS:g} s; its job is {job.id}."
                " Use `stream`, or `background` with /v1/responses.",
                retry_after_seconds=RETRY_SECONDS,
            )
        if job.status == "failed":
            raise TextFailed(job.error_message or "The job has failed.")
