"""``POST /v1/completions``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from flask import Blueprint, Response, request

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import access, principal, services
from textmill.backend.openai.completions_request import (
    CompletionRequest,
    choice_of,
    parse_completion,
    plan_completion,
)
from textmill.backend.openai.documents import finish_reason, head, usage
from textmill.backend.openai.fields import IGNORED_HEADER
from textmill.backend.openai.logprobs import completion_logprobs, mean_logprob
from textmill.backend.openai.streaming import CompletionSpec
from textmill.backend.services.container import Services
from textmill.backend.services.idempotency import body_hash, checked_key
from textmill.backend.streams.responses import reserve, stream, wait
from textmill.backend.streams.sse import WaitSpec
from textmill.core.errors import ClientError, NotFound, Unavailable
from textmill.core.jobs.admission import Origin
from textmill.core.jobs.records import JobRecord, RunRecord

WAIT_SECONDS = 590.0  # the OpenAI client gives up after 600
RETRY_SECONDS = 5
KIND = "text_completion"
blueprint = Blueprint("completions", __name__)


class TextFailed(ClientError):
    """The job of a completion has failed; asking again would fail again."""

    code = "failed"
    http_status = 400


class TextLate(Unavailable):
    """The text was not finished in the time that clients wait."""

    code = "timeout"


@blueprint.post("/completions")
def create() -> Response:
    """Continue one or more prompts."""
    hold, read_at = reserve(request), time.monotonic()
    if hold is not None and hold.is_over:
        return _answer(*cast("tuple[CompletionRequest, str]", hold.memo))
    payload = read_json(request)
    asked = parse_completion(payload)
    run = _submit(asked, payload)
    leave = leaver(services(), run.jobs)
    if asked.body.stream:
        writer = CompletionWriter(asked, run.id, services())
        spec = CompletionSpec(run.jobs, writer, read_at, leave)
        return _labelled(stream(services(), hold, spec), run.id, asked.ignored)
    waiting = WaitSpec(run.jobs, WAIT_SECONDS, read_at, leave)
    return wait(services(), hold, waiting, (asked, run.id)) or _answer(asked, run.id)


def _submit(asked: CompletionRequest, payload: Any) -> RunRecord:
    submission = services().submission
    context = submission.request_context()
    name = asked.body.model
    if name is not None and name not in context.limits:
        known = ", ".join(context.limits)
        raise NotFound(f"The model {name[:100]!r} does not exist; the models are: {known}.")
    key = checked_key(request.headers.get("Idempotency-Key"))
    origin = Origin(principal().owner_id, key, body_hash(payload, key))
    return submission.submit_plans(plan_completion(asked, context), context, origin)


def leaver(found: Services, jobs: Sequence[JobRecord]) -> Callable[[], None]:
    """A function that cancels jobs whose client has disconnected, where the setting says so."""
    cancels = access().cancels_abandoned
    ids = [job.id for job in jobs]

    def leave() -> None:
        for job_id in ids if cancels else ():
            with contextlib.suppress(ClientError):  # it has ended, or the database is away
                found.jobs.cancel(job_id)

    return leave


def _labelled(response: Response, run_id: str, ignored: Sequence[str]) -> Response:
    response.headers["x-request-id"] = run_id
    if ignored:
        names = ", ".join(name[:64] for name in ignored[:32])
        response.headers[IGNORED_HEADER] = names.encode("ascii", "replace").decode("ascii")
    return response


def ended(jobs: Sequence[JobRecord]) -> None:
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


def _answer(asked: CompletionRequest, run_id: str) -> Response:
    found = services()
    jobs = found.runs.records(run_id)
    ended(jobs)
    writer = CompletionWriter(asked, run_id, found)
    document = head(KIND, f"cmpl-{run_id}", jobs)
    document |= {"choices": writer.choices(jobs), "usage": usage(jobs)}
    return _labelled(json_response(document), run_id, asked.ignored)


class CompletionWriter:
    """Writes choices: of whole completions, and the chunks of a stream."""

    def __init__(self, asked: CompletionRequest, run_id: str, found: Services) -> None:
        self._asked = asked
        self._id = f"cmpl-{run_id}"
        self._services = found

    @property
    def holds_text_back(self) -> bool:
        """Whether the text comes at the end, with its log-probabilities."""
        return self._asked.body.logprobs is not None

    def choices(self, jobs: Sequence[JobRecord]) -> list[dict[str, Any]]:
        """The choices of a whole completion: of ``best_of`` samples the ``n`` likeliest."""
        asked, kept = self._asked, list(jobs)
        if asked.num_samples > asked.body.n:
            means = {job.id: mean_logprob(self._trace(job)) for job in jobs}
            kept = []
            for number in range(len(asked.prompts)):
                own = [job for job in jobs if job.variant_index == number]
                kept += sorted(own, key=lambda job: -means[job.id])[: asked.body.n]
        return [
            self._choice(job, number, self._prompt(job) + job.text, finish_reason(job))
            for number, job in enumerate(kept)
        ]

    def _choice(self, job: JobRecord, number: int, text: str, reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._asked.body.logprobs is not None and reason is not None:
            offset = len(self._prompt(job))
            trace = self._trace(job)
            logprobs = completion_logprobs(trace, job.text, self._asked.body.logprobs, offset)
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": reason}

    def _prompt(self, job: JobRecord) -> str:
        return job.prompt if self._asked.body.echo else ""

    def _trace(self, job: JobRecord) -> list[dict[str, Any]]:
        return self._services.history.trace(job.id)

    # ---- chunks -----------------------------------------------------------------------------

    def begin(self, job: JobRecord) -> list[dict[str, Any]]:
        """The prompt, if it is echoed."""
        prompt = self._prompt(job)
        return [self.text(job, prompt)] if prompt and not self.holds_text_back else []

    def text(self, job: JobRecord, text: str) -> dict[str, Any]:
        """The chunk of a piece of text."""
        return self._chunk(job, [self._choice(job, choice_of(self._asked, job), text, None)])

    def end(self, job: JobRecord, rest: str) -> list[dict[str, Any]]:
        """The rest of the text, and why it ended."""
        text = self._prompt(job) + rest if self.holds_text_back else rest
        number = choice_of(self._asked, job)
        return [self._chunk(job, [self._choice(job, number, text, finish_reason(job))])]

    def close(self, jobs: list[JobRecord]) -> list[dict[str, Any]]:
        """The usage, if it was asked for."""
        if not self._asked.body.stream_options.include_usage:
            return []
        return [head(KIND, self._id, jobs) | {"choices": [], "usage": usage(jobs)}]

    def _chunk(self, job: JobRecord, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = head(KIND, self._id, [job]) | {"choices": choices}
        return chunk | ({"usage": None} if self._asked.body.stream_options.include_usage else {})
