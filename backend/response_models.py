"""What goes out over HTTP: the job, the run, models, strategies, the queue, errors.

The OpenAPI document is generated from these and from ``backend.request_models``. Knows nothing of
rows: ``backend.serializers`` fills these in.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from textmill.core.catalog.finetunings import Finetuning
from textmill.core.statuses import Status

FinishReason = Literal["stop", "length", "canceled", "deadline", "error"]


class Usage(BaseModel):
    """Tokens counted; ``prompt_tokens`` is null until a worker or the web side could count."""

    prompt_tokens: int | None
    completion_tokens: int


class QueuePlace(BaseModel):
    """The place of a queued job in the line of its model.

    ``eta_seconds`` is null while there is nothing to estimate it from. Both are null when they
    could not be read in time.
    """

    position: int | None
    eta_seconds: float | None


class Timings(BaseModel):
    """Measured times of a job, in milliseconds from its creation where not said otherwise."""

    queued_ms: float | None
    first_token_ms: float | None
    total_ms: float | None
    tokens_per_second: float | None


class JobError(BaseModel):
    """Why a job failed: a stable code and a sentence."""

    code: str
    message: str


class JobLinks(BaseModel):
    """Addresses that belong to a job, as paths on this host."""

    self: str
    events: str
    cancel: str
    page: str
    trace: str


class JobView(BaseModel):
    """A job as clients see it."""

    id: str
    run_id: str | None
    status: Status
    model: str
    prompt: str
    strategy: str
    parameters: dict[str, Any]
    text: str
    finish_reason: FinishReason | None
    usage: Usage
    queue: QueuePlace | None
    error: JobError | None
    timings: Timings
    model_revision: str | None
    attempt: int
    trace: bool
    cancel_requested: bool
    variant_index: int | None
    sample_index: int | None
    cursor: Annotated[
        str, Field(description="Pass it as ?after= to the events to get what follows this text.")
    ]
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: JobLinks


class TraceView(BaseModel):
    """Why each token of a job was chosen, in the order of the text.

    The texts of the tokens are together the text, and the stop string that ended it: a character of
    several tokens is with the last of them, the others and special tokens are empty.
    """

    job_id: str
    tokens: list[dict[str, Any]]


class JobPage(BaseModel):
    """A page of the history, newest first."""

    items: list[JobView]
    next_cursor: str | None


class RunLinks(BaseModel):
    """Addresses that belong to a run."""

    self: str
    events: str
    page: str


class RunView(BaseModel):
    """One prompt decoded by several variants."""

    id: str
    prompt: str
    created_at: str
    cursor: str
    jobs: list[JobView]
    links: RunLinks


class FinetuningView(Finetuning):
    """Where a model comes from; ``base_model`` is the base's name where that is served too."""

    base_model: str | None


class ModelLinks(BaseModel):
    """Pages that belong to a model, as paths on this host; null where it has none."""

    curve: str | None
    card: str | None


class ModelView(BaseModel):
    """A model of the models file; what its weights tell is null until a worker has loaded it."""

    name: str
    description: str
    default: bool
    family: str | None
    path: Annotated[str | None, Field(description="native or generic: which runtime serves it.")]
    parameters: int | None
    context_length: int | None
    vocabulary_size: int | None
    dtype: str | None
    revision: str | None
    loaded_by: int
    finetuning: Annotated[
        FinetuningView | None,
        Field(description="What the folder of a fine-tuned model says of itself, else null."),
    ]
    links: ModelLinks


class ParameterView(BaseModel):
    """A parameter of a strategy, for forms."""

    name: str
    type: str
    default: Any
    minimum: float | int | None
    maximum: float | int | None
    exclusive_minimum: bool
    title: str
    description: str


class StrategyView(BaseModel):
    """A decoding strategy, for forms."""

    name: str
    title: str
    description: str
    parameters: list[ParameterView]


class WorkerView(BaseModel):
    """A worker seen lately."""

    id: str
    models: list[str]
    last_seen: str
    slots: int
    active: int
    tokens_per_second: float


class Throughput(BaseModel):
    """What was finished in the last five minutes, as rates."""

    jobs_per_minute: float
    tokens_per_second: float


class Waiting(BaseModel):
    """How long recent jobs waited in the queue."""

    median_seconds: float | None
    p90_seconds: float | None


class LeftOut(BaseModel):
    """A model, a models file or a process that is left out, and why."""

    host: str
    kind: Literal["model", "models_file", "worker"]
    name: str
    reason: str
    at: str


class QueueView(BaseModel):
    """The state of the queue."""

    depth: int
    running: int
    workers: list[WorkerView]
    throughput: Throughput
    waiting: Waiting
    redis: Literal["ok", "degraded"]
    problems: list[LeftOut]


class TokenView(BaseModel):
    """One token of a text."""

    id: int
    text: str


class Tokens(BaseModel):
    """A text cut into a model's tokens, whose texts are together that text.

    A character of several tokens is with the last of them, and the others are empty.
    """

    tokens: list[TokenView]
    count: int


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[dict[str, str]] | None = None
