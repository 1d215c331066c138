"""Generates the OpenAPI 3.1 document from the types of requests and responses.

An operation is one entry of ``_OPERATIONS``; the schemas are generated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from textmill.backend.bodies import MAX_BODY_BYTES
from textmill.backend.request_models import (
    JOB_REQUESTS,
    TokenizeRequest,
)
from textmill.backend.response_models import (
    JobPage,
    JobView,
    ModelView,
    Problem,
    QueueView,
    RunView,
    ShareView,
    StrategyView,
    Tokens,
    TraceView,
)
from textmill.backend.run_requests import MAX_SAMPLES, MAX_VARIANTS
from textmill.backend.share_requests import ShareRequest
from textmill.core.jobs.history import DEFAULT_LIMIT, MAX_LIMIT
from textmill.core.statuses import STATUSES
from textmill.core.strategies import STRATEGIES, STRATEGIES_BY_NAME

Document = dict[str, Any]
_REF = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; its response has a schema, or a media type with free content."""

    method: str
    path: str
    summary: str
    status: int
    schema: str | None = None
    is_list: bool = False
    media: str = "application/json"
    body: str | None = None
    parameters: tuple[str, ...] = ()
    problems: tuple[int, ...] = ()


_FILTERS = ("q", "status", "strategy", "model", "run_id", "starred", "since", "until")
_SUBMIT_PROBLEMS = (400, 413, 415, 422, 429, 503)
_OPERATIONS = (
    Operation("post", "/jobs", "Submit a job", 202, "JobView", body="JobRequest",
              parameters=("Idempotency-Key",), problems=_SUBMIT_PROBLEMS),
    Operation("get", "/jobs", "List the history, newest first", 200, "JobPage",
              parameters=("limit", "cursor", *_FILTERS), problems=(422, 503)),
    Operation("get", "/jobs/export", "Export the history", 200, media="application/jsonl",
              parameters=("format", *_FILTERS), problems=(422, 503)),
    Operation("get", "/jobs/{job_id}", "Read a job, or wait for its end", 200, "JobView",
              parameters=("wait", "If-None-Match"), problems=(404, 422, 503)),
    Operation("delete", "/jobs/{job_id}", "Delete a job", 204, problems=(404, 503)),
    Operation("post", "/jobs/{job_id}/cancel", "Cancel a job", 202, "JobView",
              problems=(404, 409, 503)),
    Operation("get", "/jobs/{job_id}/events", "Follow a job", 200, media="text/event-stream",
              parameters=("after", "Last-Event-ID"), problems=(404, 422, 503)),
    Operation("get", "/jobs/{job_id}/trace", "Read why each token was chosen", 200, "TraceView",
              problems=(404, 503)),
    Operation("post", "/jobs/{job_id}/star", "Star a job, so that it does not expire", 200,
              "JobView", problems=(404, 503)),
    Operation("delete", "/jobs/{job_id}/star", "Take the star of a job away", 200, "JobView",
              problems=(404, 503)),
    Operation("post", "/jobs/{job_id}/share", "Share a job by a link", 200, "ShareView",
              body="ShareRequest", problems=(400, 404, 413, 415, 422, 503)),
    Operation("delete", "/jobs/{job_id}/share", "Revoke the link of a job", 204,
              problems=(404, 503)),
    Operation("post", "/runs/{run_id}/share", "Share a run by a link", 200, "ShareView",
              body="ShareRequest", problems=(400, 404, 413, 415, 422, 503)),
    Operation("delete", "/runs/{run_id}/share", "Revoke the link of a run", 204,
              problems=(404, 503)),
    Operation("post", "/runs", "Submit one prompt with several variants", 202, "RunView",
              body="RunRequest", parameters=("Idempotency-Key",), problems=_SUBMIT_PROBLEMS),
    Operation("get", "/runs/{run_id}", "Read a run", 200, "RunView", problems=(404, 503)),
    Operation("get", "/runs/{run_id}/events", "Follow a run", 200, media="text/event-stream",
              parameters=("after", "Last-Event-ID"), problems=(404, 422, 503)),
    Operation("get", "/models", "List the models", 200, "ModelView", is_list=True, problems=(503,)),
    Operation("get", "/strategies", "List the strategies", 200, "StrategyView", is_list=True),
    Operation("get", "/queue", "Read the state of the queue", 200, "QueueView", problems=(503,)),
    Operation("post", "/tokenize", "Split a text into tokens", 200, "Tokens",
              body="TokenizeRequest", problems=(400, 413, 415, 422, 503)),
    Operation("get", "/openapi.json", "Read this document", 200),
)  # fmt: skip


@functools.cache
def openapi_document() -> Document:
    """Return the document."""
    paths: dict[str, Document] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Textmill",
            "version": version("textmill"),
            "summary": "Submit prompts, follow the generated text, find it again.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/api/v1"}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _operation(operation: Operation) -> Document:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    parameters: list[Document] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in names
    ]
    parameters += [_PARAMETERS[name] for name in operation.parameters]
    document: Document = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "parameters": parameters,
        "responses": _responses(operation),
    }
    if operation.body is not None:
        content: Document = {"schema": {"$ref": _REF + operation.body}}
        content["examples"] = {"simple": {"value": _EXAMPLES[operation.body]}}
        document["requestBody"] = {
            "required": True,
            "description": f"At most {MAX_BODY_BYTES} bytes.",
            "content": {"application/json": content},
        }
    return document


def _operation_id(operation: Operation) -> str:
    words = operation.path.replace("{", "").replace("}", "").replace(".", "_").split("/")
    return "_".join([operation.method, *filter(None, words)])


def _responses(operation: Operation) -> Document:
    answer: Document = {"description": operation.summary}
    if operation.schema is not None:
        schema: Document = {"$ref": _REF + operation.schema}
        if operation.is_list:
            schema = {"type": "array", "items": schema}
        answer["content"] = {operation.media: {"schema": schema}}
    elif operation.status == 200:
        kind = "object" if operation.media == "application/json" else "string"
        answer["content"] = {operation.media: {"schema": {"type": kind}}}
    if operation.path.endswith("/export"):
        answer["description"] = _EXPORT
        answer["content"]["text/csv"] = {"schema": {"type": "string"}}
    if operation.body in {"JobRequest", "RunRequest"}:
        location = {"description": "Address of the new job or run", "schema": {"type": "string"}}
        answer["headers"] = {"Location": location}
    responses = {str(operation.status): answer}
    if "If-None-Match" in operation.parameters:
        responses["304"] = {"description": "Unchanged"}
    if operation.media == "text/event-stream":
        responses["204"] = {"description": "All events were sent before; do not reconnect"}
    for status in operation.problems:
        responses[str(status)] = _problem(status)
    return responses


def _problem(status: int) -> Document:
    content = {"application/problem+json": {"schema": {"$ref": _REF + "Problem"}}}
    problem: Document = {"description": "A problem document", "content": content}
    if status in {429, 503}:
        header = {"description": "Seconds to wait", "schema": {"type": "integer"}}
        problem["headers"] = {"Retry-After": header}
    return problem


def _query(name: str, schema: Document, text: str) -> Document:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _header(name: str, schema: Document, text: str) -> Document:
    return _query(name, schema, text) | {"in": "header"}


_EXPORT = (
    "All jobs that match the filters, newest first, one per line. `queue` may be null for a queued"
    " job: positions change while the export is read."
)
_TEXT: Document = {"type": "string"}
_PARAMETERS = {
    "Idempotency-Key": _header(
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        "The same key with the same body returns the same job.",
    ),
    "If-None-Match": _header("If-None-Match", _TEXT, "An ETag; 304 if nothing has changed."),
    "Last-Event-ID": _header(
        "Last-Event-ID",
        _TEXT,
        "The id of the last event received; the stream resumes after it. An invalid id restarts the"
        " text with `reset`.",
    ),
    "after": _query(
        "after",
        _TEXT,
        "The id of the last event received, or the cursor of a job or a run; 422 if invalid.",
    ),
    "wait": _query(
        "wait", {"type": "number", "minimum": 0, "maximum": 30}, "Seconds to wait for the end."
    ),
    "limit": _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "Jobs per page.",
    ),
    "cursor": _query("cursor", _TEXT, "`next_cursor` of the previous page."),
    "q": _query("q", _TEXT, "Words that must all occur in the prompt or the text."),
    "status": _query(
        "status",
        {"type": "string", "enum": list(STATUSES)},
        "Only jobs with this status.",
    ),
    "strategy": _query(
        "strategy",
        {"type": "string", "enum": list(STRATEGIES_BY_NAME)},
        "Only jobs with this strategy.",
    ),
    "model": _query("model", _TEXT, "Only jobs of this model."),
    "run_id": _query("run_id", _TEXT, "Only the jobs of this run."),
    "starred": _query("starred", {"type": "boolean"}, "Only starred jobs, or only the others."),
    "since": _query("since", _TEXT, "Created at or after this ISO 8601 date or date-time."),
    "until": _query("until", _TEXT, "Created at or before this ISO 8601 date or date-time."),
    "format": _query(
        "format", {"type": "string", "enum": ["jsonl", "csv"], "default": "jsonl"}, "The format."
    ),
}
_PROMPT = "Title: Attention is all you need\nAbstract:"
_EXAMPLES: dict[str, Document] = {
    "JobRequest": {"prompt": _PROMPT, "strategy": "top_k", "top_k": 10, "temperature": 0.5},
    "RunRequest": {
        "prompt": _PROMPT,
        "variants": [{"strategy": "greedy"}, {"strategy": "sampling", "samples": 2}],
    },
    "TokenizeRequest": {"text": _PROMPT},
    "ShareRequest": {"expires_days": 30},
}


def _schemas() -> Document:
    inputs: list[type[BaseModel]] = [TokenizeRequest, ShareRequest]
    requests = [JOB_REQUESTS[spec.name] for spec in STRATEGIES]
    outputs: list[Any] = [
        JobView, JobPage, RunView, ModelView, StrategyView, QueueView, Tokens, TraceView, ShareView,
        Problem,
    ]  # fmt: skip
    wanted: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (model.__name__, "validation", TypeAdapter(model)) for model in inputs + requests
    ]
    wanted += [(view.__name__, "serialization", TypeAdapter(view)) for view in outputs]
    _, definitions = TypeAdapter.json_schemas(wanted, ref_template=_REF + "{model}")
    schemas: Document = definitions["$defs"]
    for model in inputs + requests:
        _allow_nulls(schemas[model.__name__])
    schemas["JobRequest"] = {
        "description": "The fields depend on the strategy, which is greedy by default.",
        "oneOf": [{"$ref": _REF + model.__name__} for model in requests],
    }
    schemas["RunRequest"] = _run_request()
    return schemas


def _run_request() -> Document:
    """Return the schema of a run, whose variants are job requests without a prompt."""
    greedy = JOB_REQUESTS["greedy"].model_json_schema()["properties"]
    names = (
        "model", "max_new_tokens", "seed", "stop", "trace", "deadline_seconds", "priority",
    )  # fmt: skip
    common = {name: greedy[name] for name in names}
    samples = {"type": "integer", "minimum": 1, "maximum": MAX_SAMPLES, "default": 1}
    variants = []
    for spec in STRATEGIES:
        schema = JOB_REQUESTS[spec.name].model_json_schema()
        own = {name: value for name, value in schema["properties"].items() if name != "prompt"}
        required = [name for name in schema.get("required", ()) if name != "prompt"]
        variant: Document = {
            "type": "object",
            "properties": own | {"samples": samples},
            "additionalProperties": False,
        }
        variants.append(variant | ({"required": required} if required else {}))
    run: Document = {
        "type": "object",
        "description": "A variant inherits the fields that it omits from the run.",
        "required": ["prompt", "variants"],
        "additionalProperties": False,
        "properties": {
            "prompt": greedy["prompt"],
            **common,
            "samples": samples,
            "variants": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_VARIANTS,
                "items": {"oneOf": variants},
            },
        },
    }
    for schema in (run, *variants):
        _allow_nulls(schema)
    return run


def _allow_nulls(schema: Document) -> None:
    """Allow null in every optional field; null means that the field is omitted."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        is_null = any(choice == {"type": "null"} for choice in field.get("anyOf", ()))
        if name not in required and not is_null:
            about = {key: field[key] for key in ("title", "description", "default") if key in field}
            value = {key: item for key, item in field.items() if key not in about}
            schema["properties"][name] = {"anyOf": [value, {"type": "null"}], **about}
