"""The engine's input and output. Knows nothing of jobs or HTTP."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from textmill.core.errors import TextmillError
from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.token_records import TokenTrace


class EngineError(TextmillError):
    """The engine cannot complete this request."""

    code = "engine_error"
    is_permanent = False


class UnknownModel(EngineError):
    """The engine has no model with that name."""

    code = "unknown_model"
    is_permanent = True


class PromptTooLong(EngineError):
    """The prompt leaves no room in the model's context."""

    code = "prompt_too_long"
    is_permanent = True


class PromptUnusable(EngineError):
    """The tokenizer cannot encode the prompt, or returns no tokens."""

    code = "prompt_unusable"
    is_permanent = True


class ParametersUnusable(EngineError):
    """The parameters name a token that the model does not have."""

    code = "parameters_unusable"
    is_permanent = True


class ModelFault(EngineError):
    """The model returned logits from which no token can be sampled."""

    code = "model_fault"


class EngineStopped(EngineError):
    """The engine is stopping, or its thread has died."""

    code = "engine_stopped"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to continue.

    Attributes:
        deadline: in seconds of the monotonic clock.
        prompt_ids: the prompt as token ids, if it is to be used as those and not tokenized.
    """

    job_id: str
    model: str
    prompt: str
    parameters: DecodingParameters
    deadline: float | None = None
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """Text appended since the last delta; ``num_tokens`` counts all new tokens so far."""

    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The generated text.

    ``finish_reason`` is stop, length, canceled, deadline, released, lost or error.
    """

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
    """A request in progress, as seen by the thread that submitted it."""

    request: GenerationRequest
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    text_so_far: str = ""
    cancel_reason: str | None = None
    _done: threading.Event = field(default_factory=threading.Event)
    _result: GenerationResult | None = None
    _failure: EngineError | None = None

    def cancel(self, reason: str = "canceled") -> None:
        """End the generation at the engine's next step; the first reason given is kept."""
        self.cancel_reason = self.cancel_reason or reason

    def done(self) -> bool:
        """Whether the result is available."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the result.

        Raises:
            TimeoutError: there was none within the timeout, in seconds.
            EngineStopped: the engine's thread has died.
        """
        if not self._done.wait(timeout):
            raise TimeoutError("The text was not complete in time.")
        if self._result is None:
            raise self._failure or EngineStopped("The engine ended without a result.")
        return self._result

    def finish(self, result: GenerationResult) -> None:
        """Set the result; later calls do nothing. Called by the engine."""
        if not self._done.is_set():
            self._result = result
            self._done.set()

    def abandon(self, failure: EngineError) -> None:
        """Make ``result`` raise an error. Called by the engine when its thread has died."""
        if not self._done.is_set():
            self._failure = failure
            self._done.set()
