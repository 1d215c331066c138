"""One sequence: its tokens, the text that is final so far, and the reason for its end.

Pure Python: knows nothing of torch, of batches or of how a token was sampled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.requests import Delta, Generation, GenerationResult
from textmill.engine.sampling.token_records import SamplingState, TokenRules, TokenTrace
from textmill.engine.stops import StopFilter


class Detokenizer(Protocol):
    """Turns tokens into text one by one; see ``IncrementalDetokenizer``."""

    def push(self, token: int) -> str:
        """Add a token, and return the text that became final with it."""
        ...

    def special_text(self, token: int) -> str:
        """The name of a special token; empty for other tokens."""
        ...

    def flush(self) -> str:
        """The text that is still held back, when there are no more tokens."""
        ...


class TokenSequence:
    """The engine's side of a ``Generation``.

    Attributes:
        ids: of the prompt and of the new tokens.
        num_cached: the number of tokens whose keys and values are cached; set by the runner.
        slots: its slots of the cache; none until it is admitted.
        width: the number of slots that it needs.
        num_passed: the number of later sequences that were admitted before it.
        awaited: an older sequence that is computing a prefix which both share.
        is_recalled: whether the prefix cache was already searched for its prompt.
    """

    width = 1

    def __init__(
        self,
        generation: Generation,
        prompt_ids: list[int],
        *,
        detokenizer: Detokenizer,
        eos_token_ids: frozenset[int],
        context_length: int,
        rules: TokenRules | None = None,
        on_delta: Callable[[Delta], None] | None = None,
    ) -> None:
        """Create a sequence of a prompt, with nothing in the cache."""
        self.generation = generation
        self.parameters = generation.request.parameters
        self.ids = list(prompt_ids)
        self.num_prompt = len(prompt_ids)
        self.num_cached = 0
        self.slots: tuple[int, ...] = ()
        self.num_passed = 0
        self.awaited: TokenSequence | None = None
        self.is_recalled = False
        self.trace: list[TokenTrace] | None = [] if self.parameters.trace else None
        self._rules = rules
        self.token_texts: list[str] = []  # added by each token; stop strings included
        self._on_delta = on_delta
        self._detokenizer = detokenizer
        self._eos_token_ids = eos_token_ids
        self._context_length = context_length
        self._stops = StopFilter(self.parameters.stop)
        self._submitted_at = time.monotonic()
        self._first_token_at: float | None = None

    @property
    def model(self) -> str:
        """The name of its model."""
        return self.generation.request.model

    @property
    def job_id(self) -> str:
        """The id of its job, for the log."""
        return self.generation.request.job_id

    @property
    def slot(self) -> int:
        """The first of its slots, which holds the prompt."""
        return self.slots[0]

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens that prompt and completion may have together."""
        return min(self.num_prompt + self.parameters.max_new_tokens, self._context_length)

    @property
    def num_new(self) -> int:
        """The number of new tokens so far."""
        return len(self.ids) - self.num_prompt

    @property
    def is_prefilled(self) -> bool:
        """Whether the cache holds all tokens but the last."""
        return self.num_missing <= 0

    @property
    def num_missing(self) -> int:
        """The number of tokens before the last that are not cached."""
        return len(self.ids) - 1 - self.num_cached

    def batch_entries(self) -> Sequence[BatchEntry]:
        """Its entries in the batch of a decode step."""
        return [self]

    def sampling_state(self) -> SamplingState:
        """The input of sampling its next token."""
        return SamplingState(self.parameters, self.ids, self.num_new, self._rules)

    def reason_to_end(self, now: float) -> str | None:
        """Why it must end before its last token: a cancel reason or its deadline."""
        if self.generation.cancel_reason:
            return self.generation.cancel_reason
        deadline = self.generation.request.deadline
        return "deadline" if deadline is not None and now > deadline else None

    def push(self, token: int, trace: TokenTrace | None = None) -> str | None:
        """Append a token, and return the finish reason if it was the last."""
        special = self._detokenizer.special_text(token)
        if token in self._eos_token_ids:
            self._emit(self._stops.push("", special))  # a stop string may end with its name
            return "stop"
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
        self.ids.append(token)
        text = self._detokenizer.push(token)
        self.token_texts.append(text)
        if self.trace is not None and trace is not None:
            self.trace.append(replace(trace, text=text))
        self.generation.num_completion_tokens = self.num_new
        self._emit(self._stops.push(text, special))
        if self._stops.is_stopped:
            return "stop"
        room = self._context_length - len(self.ids)
        return "length" if self.num_new >= self.parameters.max_new_tokens or room <= 0 else None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Emit the text that was held back, and set the result."""
        if not self._stops.is_stopped and error is None:
            left = self._detokenizer.flush()
            if left and self.trace:
                self.trace[-1] = replace(self.trace[-1], text=self.trace[-1].text + left)
            self._emit(self._stops.push(left))
            if not self._stops.is_stopped:
                self._emit(self._stops.flush())
            elif reason == "length":
                reason = "stop"
        self._set_result(reason, error)

    def fail(self, error: Exception) -> None:
        """Set an error as the result, without a further delta."""
        self._set_result("error", error)

    def _set_result(self, reason: str, error: Exception | None) -> None:
        now = time.monotonic()
        first = self._first_token_at
        result = GenerationResult(
            text=self.generation.text_so_far,
            finish_reason=reason,
            num_prompt_tokens=self.num_prompt,
            num_completion_tokens=self.num_new,
            first_token_seconds=None if first is None else first - self._submitted_at,
            decode_seconds=now - (self._submitted_at if first is None else first),
            trace=self.trace,
            error=error,
        )
        self.generation.finish(result)

    def _emit(self, text: str) -> None:
        if text:
            self.generation.text_so_far += text
            if self._on_delta is not None:
                self._on_delta(Delta(text, self.num_new))
