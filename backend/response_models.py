"""The JSON documents that the API returns, as types.

The type checker compares ``backend.serializers`` with these types, and the OpenAPI document is
generated from them, so a document is described in one place.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetPydanticSchema
from typing_extensions import TypedDict

from textmill.core.catalog.finetunings import Finetuning
from textmill.core.statuses import Status

FinishReason = Literal["stop", "length", "canceled", "deadline", "error"]


class Usage(TypedDict):
    """Numbers of tokens; ``prompt_tokens`` is null until a worker has loaded the model."""

    prompt_tokens: int | None
    completion_tokens: int


class QueuePlace(TypedDict):
    """The position of a queued job among the queued jobs of its model.

    ``eta_seconds`` is null while there is nothing to estimate it from. Both are null if they could
    not be read in time.
    """

    position: int | None
    eta_seconds: float | None


class Timings(TypedDict):
    """Measured times of a job, in milliseconds since its creation, and its rate."""

    queued_ms: float | None
    first_token_ms: float | None
    total_ms: float | None
    tokens_per_second: float | None


class JobError(TypedDict):
    """Why a job failed: a stable code and a sentence."""

    code: str
    message: str


class JobLinks(TypedDict):
    """Addresses of a job, as paths on this host."""

    self: str
    events: str
    cancel: str
    page: str
    trace: str


class JobView(TypedDict):
    """A job as clients see it."""

    id: str
    run_id: str | None
    status: Status
    model: str
    prompt: str
    prompt_ids: list[int] | None
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
    priority: int
    starred: bool
    cancel_requested: bool
    variant_index: int | None
    sample_index: int | None
    cursor: Annotated[
        str,
        Field(description="Pass it to the events as ?after= to get the text that follows."),
    ]
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: JobLinks


class TraceView(TypedDict):
    """Why each token of a job was chosen, in the order of the text.

    The texts of the tokens join to the job's text and the stop string that ended it. The text of a
    character that spans several tokens belongs to the last of them; the other ones, and special
    tokens, have an empty text.
    """

    job_id: str
    tokens: list[dict[str, Any]]


class JobPage(TypedDict):
    """A page of the history, newest first."""

    items: list[JobView]
    next_cursor: str | None


class RunLinks(TypedDict):
    """Addresses of a run, as paths on this host."""

    self: str
    events: str
    page: str


class RunView(TypedDict):
    """One prompt decoded by several variants."""

    id: str
    prompt: str
    created_at: str
    cursor: str
    jobs: list[JobView]
    links: RunLinks


class FinetuningView(Finetuning):
    """How a model was fine-tuned; ``base_model`` is the name of the base if it is served too."""

    base_model: str | None


class ModelLinks(TypedDict):
    """Pages of a model, as paths on this host; null where the model has none."""

    curve: str | None
    card: str | None


class ModelView(TypedDict):
    """A model of the models file. Fields known from the weights are null until it is loaded."""

    name: str
    description: str
    default: bool
    family: str | None
    path: Annotated[str | None, Field(description="The runtime: native or generic.")]
    parameters: int | None
    context_length: int | None
    vocabulary_size: int | None
    dtype: str | None
    instruction_set: Annotated[
        str | None,
        Field(description="That of the compiled kernels; null if PyTorch computes."),
    ]
    kernels_note: Annotated[
        str | None,
        Field(description="The compiler that made the kernels, or why PyTorch computes."),
    ]
    revision: str | None
    loaded_by: int
    finetuning: Annotated[
        dict[str, Any] | None,  # a FinetuningView as JSON
        GetPydanticSchema(lambda _source, handler: handler(FinetuningView | None)),
        Field(description="What the folder of a fine-tuned model says about it; else null."),
    ]
    links: ModelLinks


class ParameterView(TypedDict):
    """A parameter of a strategy, for forms."""

    name: str
    type: str
    default: Any
    minimum: float | int | None
    maximum: float | int | None
    exclusive_minimum: bool
    title: str
    description: str


class StrategyView(TypedDict):
    """A decoding strategy, for forms."""

    name: str
    title: str
    description: str
    parameters: list[ParameterView]


class WorkerView(TypedDict):
    """A worker seen in the last 30 s."""

    id: str
    models: list[str]
    last_seen: str
    slots: int
    active: int
    tokens_per_second: float


class Throughput(TypedDict):
    """Rates over the jobs that ended in the last five minutes."""

    jobs_per_minute: float
    tokens_per_second: float


class Waiting(TypedDict):
    """How long recent jobs waited in the queue."""

    median_seconds: float | None
    p90_seconds: float | None


class LeftOut(TypedDict):
    """A model, a models file or a process that is left out, or a full disk, and the reason."""

    host: str
    kind: Literal["model", "models_file", "worker", "disk"]
    name: str
    reason: str
    at: str


class QueueView(TypedDict):
    """The state of the queue."""

    depth: int
    running: int
    workers: list[WorkerView]
    throughput: Throughput
    waiting: Waiting
    redis: Literal["ok", "degraded"]
    problems: list[LeftOut]


class TokenView(TypedDict):
    """One token of a text."""

    id: int
    text: str


class Tokens(TypedDict):
    """The tokens of a text. Their texts join to the text.

    The text of a character that spans several tokens belongs to the last of them; the other ones
    have an empty text.
    """

    tokens: list[TokenView]
    count: int


class ShareView(TypedDict):
    """A link that shows a job or run to everybody who has it."""

    url: str
    expires_at: str | None
    index: bool


class ProblemField(TypedDict):
    """A bad field of a request."""

    field: str
    message: str


class _ProblemBase(TypedDict):
    type: str
    title: str
    status: int
    detail: str
    code: str


class Problem(_ProblemBase, total=False):
    """An error, as in RFC 9457."""

    errors: list[ProblemField]
