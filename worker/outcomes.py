"""Turns the engine's results into the outcomes of jobs. Writes nothing."""

from __future__ import annotations

from typing import Any

from textmill.core.errors import TextmillError
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import Outcome
from textmill.core.redaction import reason_of, without_paths
from textmill.engine import GenerationResult
from textmill.worker.publishing import storable

MAX_ERRORS = 3  # a job whose decoding failed this often fails; each error counts as a loss
_STATUSES = {"canceled": "canceled", "error": "failed", "deadline": "failed"}


def outcome_of(result: GenerationResult, model_revision: str | None) -> Outcome:
    """The outcome of a job whose generation has ended."""
    error_code = error_message = None
    if result.finish_reason == "error":
        error_code, error_message = code_of(result.error), _message_of(result.error)
    elif result.finish_reason == "deadline":
        error_code, error_message = "deadline", "The text was not finished by the job's deadline."
    return Outcome(
        status=_STATUSES.get(result.finish_reason, "succeeded"),
        text=storable(result.text),
        finish_reason=result.finish_reason,
        num_prompt_tokens=result.num_prompt_tokens or None,
        num_completion_tokens=result.num_completion_tokens,
        first_token_seconds=result.first_token_seconds,
        model_revision=model_revision,
        error_code=error_code,
        error_message=error_message,
        trace=_trace_json(result),
    )


def may_retry(job: JobRecord, result: GenerationResult) -> bool:
    """Whether another job of the batch may have caused the error; then the job is tried alone."""
    is_permanent = isinstance(result.error, TextmillError) and getattr(
        result.error, "is_permanent", False
    )
    return not is_permanent and job.lost_count + 1 < MAX_ERRORS


def failed_result(error: Exception) -> GenerationResult:
    """The result of a generation that could not be run."""
    return GenerationResult(
        text="",
        finish_reason="error",
        num_prompt_tokens=0,
        num_completion_tokens=0,
        first_token_seconds=None,
        decode_seconds=0.0,
        trace=None,
        error=error,
    )


def code_of(error: Exception | None) -> str:
    """The stable code of an error."""
    return str(getattr(error, "code", "internal"))


def _message_of(error: Exception | None) -> str:
    """What a visitor reads of an error: nothing quoted by a library, and no path of this machine.

    The log has the whole error.
    """
    return "" if error is None else storable(without_paths(reason_of(error)))


def _trace_json(result: GenerationResult) -> list[dict[str, Any]] | None:
    if result.trace is None:
        return None
    return [_storable_json(token.as_json()) for token in result.trace]


def _storable_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _storable_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable_json(item) for item in value]
    return storable(value) if isinstance(value, str) else value
