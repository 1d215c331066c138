"""``/v1/responses``: a job under its other name, with a background mode."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flask import Blueprint, Response, request
from pydantic import ConfigDict, Field

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import access, services
from textmill.backend.openai.chat import (
    MAX_MESSAGES,
    Message,
    conversation,
    default_tokens,
    plan_samples,
)
from textmill.backend.openai.fields import DecodingFields, parse_fields
from textmill.backend.openai.response_documents import PREFIX, ResponseWriter, response_document
from textmill.backend.openai.serving import labelled, serve, submit
from textmill.backend.openai.streaming import CompletionSpec
from textmill.backend.query import parse_query, truth, whole
from textmill.backend.request_context import RequestContext
from textmill.backend.run_requests import PlannedJob
from textmill.backend.services.container import Services
from textmill.backend.streams.responses import reserve, stream
from textmill.core.errors import Conflict, FieldError, NotFound, ValidationFailed
from textmill.core.jobs.records import JobRecord

MAX_SEQUENCE = 999_999_999
_TOOLS = "is not supported: the models do not call tools"
_REFUSED = {
    "tools": _TOOLS,
    "previous_response_id": "is not supported; send the whole conversation as input",
    "conversation": "is not supported; send the whole conversation as input",
    "prompt": "is not supported: there are no stored prompts; send input",
}
_SILENT = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "tool_choice",
     "truncation", "text", "reasoning", "include", "prompt_cache_key", "safety_identifier"}
)  # fmt: skip
_NAMES = {"max_new_tokens": "max_output_tokens", "prompt_ids": "input", "prompt": "input"}
_READ = {"stream": truth(), "starting_after": whole(0, MAX_SEQUENCE)}
blueprint = Blueprint("responses", __name__)


class InputMessage(Message):
    """A message of the input."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["message"] = "message"


class ResponseBody(DecodingFields):
    """The fields of a response."""

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    )
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    background: bool = False


@dataclass(frozen=True, slots=True)
class Responding:
    """A request for a response."""

    fields: ResponseBody
    ignored: list[str]
    falls_back: bool

    def plan(self, found: Services, context: RequestContext) -> list[PlannedJob]:
        """The one job."""
        body = self.fields
        prompt = self._prompt(found)
        fields = body.job_fields() | prompt
        fields |= {"max_new_tokens": body.max_output_tokens or default_tokens(context, body.model)}
        return plan_samples(fields, context, body, _NAMES)

    def _prompt(self, found: Services) -> dict[str, Any]:
        """A text alone is continued as it is by a model without a chat template."""
        body = self.fields
        config = found.models.tokenizer_config(body.model)
        if isinstance(body.input, str) and not body.instructions and "chat_template" not in config:
            return {"prompt": body.input}
        messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
        if isinstance(body.input, str):
            messages.append({"role": "user", "content": body.input})
        else:
            messages += [message.as_plain() for message in body.input]
        try:
            return conversation(found, body.model, messages, falls_back=self.falls_back)
        except ValidationFailed as failed:
            raise ValidationFailed(
                [FieldError("input", e.message) for e in failed.errors]
            ) from None

    def writer(self, run_id: str, found: Services) -> ResponseWriter:
        """The writer of its documents."""
        return ResponseWriter()


def parse_response(payload: Any) -> Responding:
    """Validate a request.

    Raises:
        BadRequest, ValidationFailed: it names every invalid field.
    """
    body, ignored = parse_fields(payload, ResponseBody, _REFUSED, _SILENT)
    errors = []
    if body.n != 1:
        errors.append(FieldError("n", "must be 1; use /v1/chat/completions for more"))
    if errors:
        raise ValidationFailed(errors)
    return Responding(body, ignored, access().joins_messages)


@blueprint.post("/responses")
def create() -> Response:
    """Write a response: in a stream, at once, or in the background."""
    payload = read_json(request, cache=True)
    if not (isinstance(payload, Mapping) and payload.get("background") is True):
        return serve(parse_response)
    asked = parse_response(payload)
    read_at = time.monotonic()
    run = submit(asked, payload)
    if asked.fields.stream:
        spec = CompletionSpec(run.jobs, ResponseWriter(), read_at, _stay)
        return labelled(stream(services(), reserve(request), spec), run.id, asked.ignored)
    return labelled(json_response(response_document(run.jobs[0])), run.id, asked.ignored)


def _stay() -> None:
    """Do nothing: what was ordered in the background goes on without its client."""


@blueprint.get("/responses/<response_id>")
def read(response_id: str) -> Response:
    """Return a response; ``?stream=true&starting_after=N`` follows it."""
    asked = parse_query(request.args, _READ, ignores_others=True)
    if not asked.get("stream"):
        return json_response(response_document(_job(response_id)))
    hold, read_at = reserve(request), time.monotonic()
    job = _job(response_id)
    writer = ResponseWriter(asked.get("starting_after", -1))
    spec = CompletionSpec((job,), writer, read_at, _stay, writer.num_known)
    return stream(services(), hold, spec)


@blueprint.post("/responses/<response_id>/cancel")
def cancel(response_id: str) -> Response:
    """Cancel a response; one that has ended stays as it is."""
    job = _job(response_id)
    try:
        services().jobs.cancel(job.id)
    except Conflict:
        return json_response(response_document(job))
    return json_response(response_document(_job(response_id), is_canceling=True))


@blueprint.delete("/responses/<response_id>")
def delete(response_id: str) -> Response:
    """Delete a response."""
    services().jobs.delete(_job(response_id).id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


def _job(response_id: str) -> JobRecord:
    if not response_id.startswith(PREFIX):
        raise NotFound("There is no response with that id.")
    return services().jobs.record(response_id.removeprefix(PREFIX))
