"""One text being written: its tokens, what is certain of its text, and why it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from worker.decoding.sampling import RowState
from worker.decoding.trace import TokenTrace
from worker.engine.requests import Delta, Generation, GenerationResult
from worker.engine.stops import StopFilter
from worker.models.loading import LoadedModel
from worker.models.tokenizer import IncrementalDetokenizer


class Sequence:
    """The engine's side of a ``Generation``."""

    def __init__(
        self,
        generation: Generation,
        prompt_ids: list[int],
        model: LoadedModel,
        on_delta: Callable[[Delta], None] | None,
    ) -> None:
        """Start after the prompt, with nothing in the cache."""
        self.generation = generation
        self.parameters = generation.request.parameters
        self.model = model
        self.ids = list(prompt_ids)
        self.num_prompt = len(prompt_ids)
        self.num_cached = 0
        self.slot = -1
        self.trace: list[TokenTrace] | None = [] if self.parameters.trace else None
        self._on_delta = on_delta
        self._detokenizer = IncrementalDetokenizer(model.tokenizer, prompt_ids)
        self._stops = StopFilter(self.parameters.stop)
        self._started = time.monotonic()
        self._first: float | None = None

    @property
    def num_new(self) -> int:
        """Tokens written so far."""
        return len(self.ids) - self.num_prompt

    @property
    def is_prefilled(self) -> bool:
        """Whether only the last token is missing from the cache."""
        return self.num_cached >= len(self.ids) - 1

    def row_state(self) -> RowState:
        """What choosing the next token needs."""
        return RowState(self.parameters, self.ids, self.num_new)

    def outside_reason(self, now: float) -> str | None:
        """Why somebody outside wants it ended."""
        if self.generation.cancel_reason:
            return self.generation.cancel_reason
        deadline = self.generation.request.deadline
        return "deadline" if deadline is not None and now > deadline else None

    def push(self, token: int) -> str | None:
        """Take a token; the reason if it was the last."""
        if token in self.model.info.eos_token_ids:
            return "stop"
        if self._first is None:
            self._first = time.monotonic() - self._started
        self.ids.append(token)
        self.generation.num_completion_tokens = self.num_new
        self._emit(self._stops.push(self._detokenizer.push(token)))
        if self._stops.is_stopped:
            return "stop"
        room = self.model.info.context_length - len(self.ids)
        return "length" if self.num_new >= self.parameters.max_new_tokens or room <= 0 else None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Show what was held back, and set the result."""
        if not self._stops.is_stopped and error is None:
            self._emit(self._stops.push(self._detokenizer.flush()))
            if not self._stops.is_stopped:
                self._emit(self._stops.flush())
            elif reason == "length":
                reason = "stop"
        self._set_result(reason, error)

    def _set_result(self, reason: str, error: Exception | None) -> None:
        first = self._first
        seconds = time.monotonic() - self._started - (first or 0.0)
        result = GenerationResult(
            text=self.generation.text_so_far,
            finish_reason=reason,
            num_prompt_tokens=self.num_prompt,
            num_completion_tokens=self.num_new,
            first_token_seconds=first,
            decode_seconds=seconds,
            trace=self.trace,
            error=error,
        )
        self.generation.finish(result)

    def fail(self, error: Exception) -> None:
        """Set an error as the result, saying nothing more to anybody."""
        self._set_result("error", error)

    def _emit(self, text: str) -> None:
        if text:
            self.generation.text_so_far += text
            if self._on_delta is not None:
                self._on_delta(Delta(text, self.num_new))
