"""``POST /v1/chat/completions``, for models with a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flask import Blueprint, Response
from pydantic import BaseModel, ConfigDict, Field

from textmill.backend.current import access
from textmill.backend.openai.completions_request import sample_seed
from textmill.backend.openai.documents import DONE, event, finish_reason, head, usage
from textmill.backend.openai.fields import MAX_CHOICES, DecodingFields, parse_fields
from textmill.backend.openai.logprobs import chat_logprobs
from textmill.backend.openai.serving import serve
from textmill.backend.request_context import RequestContext
from textmill.backend.request_models import parse_job_request
from textmill.backend.run_requests import PlannedJob
from textmill.backend.services.container import Services
from textmill.core.errors import FieldError, ValidationFailed
from textmill.core.jobs.records import JobRecord
from textmill.tokenizing.chat_templates import TemplateFault

MAX_MESSAGES = 1_000
MAX_LOGPROBS = 20
DEFAULT_TOKENS = 256
_TOOLS = "is not supported: the models do not call tools"
REFUSED = {
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "functions": _TOOLS,
    "function_call": _TOOLS,
    "audio": "is not supported",
    "modalities": "is not supported",
}
NO_TEMPLATE = (
    "the model {model} has no chat template; use /v1/completions, or set"
    " TEXTMILL_CHAT_FALLBACK=plain, which joins the messages"
)
_NAMES = {"max_new_tokens": "max_tokens", "prompt_ids": "messages", "prompt": "messages"}
blueprint = Blueprint("chat", __name__)


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    def as_plain(self) -> dict[str, str]:
        """The message as templates know it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content}


class ResponseFormat(BaseModel):
    """``response_format``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["text"] = "text"


class ChatBody(DecodingFields):
    """The fields of a chat completion."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    response_format: ResponseFormat = ResponseFormat()


@blueprint.post("/chat/completions")
def create() -> Response:
    """Write the next message of a conversation."""
    return serve(parse_chat)


@dataclass(frozen=True, slots=True)
class Chat:
    """A request for chat completions.

    Attributes:
        fields: of the body.
        ignored: names of fields that have no effect.
        falls_back: whether the messages are joined where a model has no template.
    """

    fields: ChatBody
    ignored: list[str]
    falls_back: bool

    def plan(self, found: Services, context: RequestContext) -> list[PlannedJob]:
        """The jobs, one for each choice."""
        body = self.fields
        num_tokens = body.max_completion_tokens or body.max_tokens
        messages = [message.as_plain() for message in body.messages]
        prompt = conversation(found, body.model, messages, falls_back=self.falls_back)
        fields = body.job_fields() | prompt
        fields |= {"max_new_tokens": num_tokens or default_tokens(context, body.model)}
        fields |= {"trace": True} if body.logprobs else {}
        return plan_samples(fields, context, body, _NAMES)

    def writer(self, run_id: str, found: Services) -> ChatWriter:
        """The writer of its documents."""
        return ChatWriter(self.fields, run_id, found)


def parse_chat(payload: Any) -> Chat:
    """Validate a request.

    Raises:
        BadRequest, ValidationFailed: it names every invalid field.
    """
    body, ignored = parse_fields(payload, ChatBody, REFUSED)
    if body.n > MAX_CHOICES:
        raise ValidationFailed([FieldError("n", f"must be at most {MAX_CHOICES}")])
    return Chat(body, ignored, access().joins_messages)


def conversation(
    found: Services, model: str | None, messages: Sequence[dict[str, str]], *, falls_back: bool
) -> dict[str, Any]:
    """A conversation as fields of a job request.

    The template writes the special tokens itself, so that the tokenizer adds none.

    Raises:
        ValidationFailed: the model has no template, or it refuses the conversation.
    """
    config = found.models.tokenizer_config(model)
    if "chat_template" in config:
        try:
            text = found.templates.render(config, messages)
        except TemplateFault as fault:
            raise ValidationFailed([FieldError("messages", str(fault))]) from None
        ids = found.models.token_ids(model, text, adds_ends=False, field="messages")
        if ids:
            return {"prompt_ids": ids}
        raise ValidationFailed([FieldError("messages", "the conversation has no text")])
    if not falls_back:
        name = model or found.models.default_name()
        raise ValidationFailed([FieldError("messages", NO_TEMPLATE.format(model=name))])
    return {"prompt": "\n\n".join(message["content"] for message in messages)}


def default_tokens(context: RequestContext, model: str | None) -> int:
    """How many tokens to write if a client does not say it; less for a very small model."""
    limits = context.limits.get(model or context.default_model)
    length = limits.context_length if limits else None
    return DEFAULT_TOKENS if length is None else max(1, min(DEFAULT_TOKENS, length // 2))


def plan_samples(
    fields: dict[str, Any], context: RequestContext, body: DecodingFields, names: dict[str, str]
) -> list[PlannedJob]:
    """The jobs of one prompt, one for each sample.

    Raises:
        ValidationFailed: it names every invalid field, as ``names`` translates it.
    """
    try:
        asked = parse_job_request(fields, context)
    except ValidationFailed as failed:
        raise ValidationFailed(
            [FieldError(names.get(e.field, e.field), e.message) for e in failed.errors]
        ) from None
    return [
        PlannedJob(asked, asked.resolved_parameters(sample_seed(body.seed, sample)), 0, sample)
        for sample in range(body.n)
    ]


class ChatWriter:
    """Writes the choices of a chat completion: whole, and as chunks of a stream."""

    def __init__(self, body: ChatBody, run_id: str, found: Services) -> None:
        self._body = body
        self._id = f"chatcmpl-{run_id}"
        self._services = found

    @property
    def holds_text_back(self) -> bool:
        """Whether the text comes at the end, with its log-probabilities."""
        return self._body.logprobs

    def whole(self, jobs: Sequence[JobRecord]) -> dict[str, Any]:
        """The document of all texts."""
        choices = [
            {
                "index": job.sample_index,
                "message": {"role": "assistant", "content": job.text, "refusal": None},
                "logprobs": self._logprobs(job),
                "finish_reason": finish_reason(job),
            }
            for job in jobs
        ]
        document = head("chat.completion", self._id, jobs)
        return document | {"choices": choices, "usage": usage(jobs)}

    def _logprobs(self, job: JobRecord) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._services.history.trace(job.id), self._body.top_logprobs)

    # ---- chunks -----------------------------------------------------------------------------

    def begin(self, job: JobRecord) -> list[dict[str, Any]]:
        """The role."""
        return [self._chunk(job, {"role": "assistant", "content": ""})]

    def text(self, job: JobRecord, text: str, end: int) -> dict[str, Any]:
        """The chunk of a piece of text."""
        return self._chunk(job, {"content": text})

    def end(self, job: JobRecord, rest: str) -> list[dict[str, Any]]:
        """The rest of the text, and why it ended."""
        chunks = []
        if rest:
            chunks.append(self._chunk(job, {"content": rest}, logprobs=self._logprobs(job)))
        return [*chunks, self._chunk(job, {}, reason=finish_reason(job))]

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
        if not self._body.stream_options.include_usage:
            return []
        return [self._head(jobs) | {"choices": [], "usage": usage(jobs)}]

    def _head(self, jobs: Sequence[JobRecord]) -> dict[str, Any]:
        return head("chat.completion.chunk", self._id, jobs)

    def _chunk(
        self,
        job: JobRecord,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": job.sample_index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        chunk = self._head([job]) | {"choices": [choice]}
        return chunk | ({"usage": None} if self._body.stream_options.include_usage else {})
