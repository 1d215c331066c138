"""What goes into the engine and what comes out; no jobs, no HTTP."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from textmill.core.errors import TextmillError
from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.token_records import TokenTrace


class EngineError(TextmillError):
    """The engine cannot write this text."""

    code = "engine_error"
    is_permanent = False


class UnknownModel(EngineError):
    """The engine holds no model of that name."""

    code = "unknown_model"
    is_permanent = True


class PromptTooLong(EngineError):
    """The prompt leaves no room in the model's context."""

    code = "prompt_too_long"
    is_permanent = True


class PromptUnusable(EngineError):
    """The tokenizer makes nothing of the prompt."""

    code = "prompt_unusable"
    is_permanent = True


class ModelFault(EngineError):
    """The model gave numbers that no token can be chosen from."""

    code = "model_fault"


class EngineStopped(EngineError):
    """The engine is stopping or its thread has died."""

    code = "engine_stopped"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One text to write; ``deadline`` is in seconds of the monotonic clock."""

    job_id: str
    model: str
    prompt: str
    parameters: DecodingParameters
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """Text appended since the last delta; ``num_tokens`` counts from the text's start."""

    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """How a text ended: stop, length, canceled, deadline, released, lost or error."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    first_token_seconds: float | None
    decode_seconds: float
    trace: list[TokenTrace] | None
    error: Exception | None


@dataclass(slots=True)
class Generation:
    """A text that is being written, as the thread that asked for it sees it."""

    request: GenerationRequest
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    text_so_far: str = ""
    cancel_reason: str | None = None
    _done: threading.Event = field(default_factory=threading.Event)
    _result: GenerationResult | None = None
    _failure: EngineError | None = None

    def cancel(self, reason: str = "canceled") -> None:
        """Drop the text at the engine's next step; the first reason counts."""
        self.cancel_reason = self.cancel_reason or reason

    def done(self) -> bool:
        """Whether the result is there."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the end.

        Raises:
            TimeoutError: it did not come in time.
            EngineStopped: the engine's thread has died.
        """
        if not self._done.wait(timeout):
            raise TimeoutError("The text was not done in time.")
        if self._result is None:
            raise self._failure or EngineStopped("The engine ended without a result.")
        return self._result

    def finish(self, result: GenerationResult) -> None:
        """Set the result, once; for the engine."""
        if not self._done.is_set():
            self._result = result
            self._done.set()

    def abandon(self, failure: EngineError) -> None:
        """Make ``result`` raise, since nobody is left to write; for the engine."""
        if not self._done.is_set():
            self._failure = failure
            self._done.set()
