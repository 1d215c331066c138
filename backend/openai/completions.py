"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Blueprint, Response

from textmill.backend.openai.completions_request import (
    CompletionRequest,
    choice_of,
    parse_completion,
    plan_completion,
)
from textmill.backend.openai.documents import DONE, event, finish_reason, head, usage
from textmill.backend.openai.fields import DecodingFields
from textmill.backend.openai.logprobs import completion_logprobs, mean_logprob
from textmill.backend.openai.serving import serve
from textmill.backend.request_context import RequestContext
from textmill.backend.run_requests import PlannedJob
from textmill.backend.services.container import Services
from textmill.core.jobs.records import JobRecord

KIND = "text_completion"
blueprint = Blueprint("completions", __name__)


@blueprint.post("/completions")
def create() -> Response:
    """Continue one or more prompts."""
    return serve(lambda payload: Completion(parse_completion(payload)))


class Completion:
    """A request for completions."""

    def __init__(self, asked: CompletionRequest) -> None:
        self._asked = asked

    @property
    def fields(self) -> DecodingFields:
        """The fields of all kinds."""
        return self._asked.body

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return self._asked.ignored

    def plan(self, found: Services, context: RequestContext) -> list[PlannedJob]:
        """The jobs."""
        return plan_completion(self._asked, context)

    def writer(self, run_id: str, found: Services) -> CompletionWriter:
        """The writer of its documents."""
        return CompletionWriter(self._asked, run_id, found)


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

    def whole(self, jobs: Sequence[JobRecord]) -> dict[str, Any]:
        """The document of all texts."""
        return head(KIND, self._id, jobs) | {"choices": self._choices(jobs), "usage": usage(jobs)}

    def _choices(self, jobs: Sequence[JobRecord]) -> list[dict[str, Any]]:
        """Of ``best_of`` samples the ``n`` likeliest."""
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
        return [self.text(job, prompt, 0)] if prompt and not self.holds_text_back else []

    def text(self, job: JobRecord, text: str, end: int) -> dict[str, Any]:
        """The chunk of a piece of text."""
        return self._chunk(job, [self._choice(job, choice_of(self._asked, job), text, None)])

    def end(self, job: JobRecord, rest: str) -> list[dict[str, Any]]:
        """The rest of the text, and why it ended."""
        text = self._prompt(job) + rest if self.holds_text_back else rest
        number = choice_of(self._asked, job)
        return [self._chunk(job, [self._choice(job, number, text, finish_reason(job))])]

    def fail(self, job: JobRecord, error: dict[str, Any]) -> list[dict[str, Any]]:
        """The error."""
        return [{"error": error}]

    def event(self, chunk: Mapping[str, Any]) -> str:
        """An unnamed event."""
        return event(chunk)

    @property
    def last_line(self) -> str:
        """The end of OpenAI's streams."""
        return DONE

    def close(self, jobs: list[JobRecord]) -> list[dict[str, Any]]:
        """The usage, if it was asked for."""
        if not self._asked.body.stream_options.include_usage:
            return []
        return [head(KIND, self._id, jobs) | {"choices": [], "usage": usage(jobs)}]

    def _chunk(self, job: JobRecord, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = head(KIND, self._id, [job]) | {"choices": choices}
        return chunk | ({"usage": None} if self._asked.body.stream_options.include_usage else {})
