"""The engine: one thread that owns torch, and rows that join and leave between any two steps.

admit → prefill (in chunks) → one decode step a model → strategies → publish. Knows nothing of
Celery, SQL or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from torch import Tensor

from core.strategies import DecodingParameters
from worker.decoding.sampling import Choice, choose
from worker.decoding.trace import trace_token
from worker.engine.requests import (
    Delta,
    EngineStopped,
    Generation,
    GenerationRequest,
    PromptTooLong,
    PromptUnusable,
    StrategyNotServed,
    UnknownModel,
)
from worker.engine.sequence import Sequence
from worker.models.loading import LoadedModel

RATE_SECONDS = 10.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Numbers of an engine; rates are over the last ten seconds."""

    num_tokens: int
    num_steps: int
    mean_occupancy: float
    tokens_per_second: float


class Engine:
    """Writes texts on the models it was given. ``submit`` may be called from any thread."""

    def __init__(self, models: Mapping[str, LoadedModel], *, num_slots: int) -> None:
        """Keep the models; ``num_slots`` sequences are decoded at once, all models together."""
        self._models = dict(models)
        self.num_slots = num_slots
        self.step_count = 0
        self._wake = threading.Condition(threading.RLock())
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._is_stopping = False
        self._num_tokens = 0
        self._history: deque[tuple[float, int]] = deque()
        self._history_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def num_active(self) -> int:
        """Sequences being decoded."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the thread that owns torch."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End the thread after its present step; what runs ends with an error."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def submit(
        self, request: GenerationRequest, on_delta: Callable[[Delta], None] | None = None
    ) -> Generation:
        """Queue a text; ``on_delta`` is called on the engine's thread and must return at once.

        Raises:
            UnknownModel, PromptTooLong, StrategyNotServed, EngineStopped: nothing was queued.
        """
        model = self._models.get(request.model)
        if model is None:
            raise UnknownModel(f"This worker holds no model named {request.model!r}.")
        if request.parameters.strategy == "beam":
            raise StrategyNotServed("Beam search is not served yet; choose another strategy.")
        ids = model.tokenizer.encode(request.prompt)
        if not ids:
            raise PromptUnusable("The prompt has no tokens for this model.")
        if len(ids) >= model.info.context_length:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens, and the model's context holds"
                f" {model.info.context_length}, the new tokens included."
            )
        generation = Generation(request, num_prompt_tokens=len(ids))
        sequence = Sequence(generation, ids, model, on_delta)
        with self._wake:
            if self._is_stopping or not self._thread.is_alive():
                raise EngineStopped("The engine is not running.")
            self._waiting.append(sequence)
            self._wake.notify_all()
        return generation

    def statistics(self) -> EngineStatistics:
        """The numbers as they stand."""
        since = time.monotonic() - RATE_SECONDS
        with self._history_lock:
            recent = [num for at, num in self._history if at >= since]
            total = self._num_tokens
        occupancy = sum(recent) / len(recent) / self.num_slots if recent else 0.0
        return EngineStatistics(total, self.step_count, occupancy, sum(recent) / RATE_SECONDS)

    def warm_up(self) -> None:
        """Write a few tokens on every model, so that the first visitor does not wait for it."""
        for name in self._models:
            parameters = DecodingParameters(strategy="sampling", max_new_tokens=4, seed=0)
            self.submit(GenerationRequest("warm-up", name, "Hello", parameters)).result(120)

    # ---- the engine's thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        finally:  # an end that nobody asked for must not leave anybody waiting
            with self._wake:
                self._is_stopping = True
            self._fail_all(EngineStopped("The engine has stopped."))

    def _wait_for_work(self) -> bool:
        with self._wake:
            if not self._has_work():
                for model in self._models.values():
                    model.runner.rest()
            while not self._has_work() and not self._is_stopping:
                self._wake.wait()
            return not self._is_stopping

    def _has_work(self) -> bool:
        return bool(self._waiting or self._active)

    def _step(self) -> None:
        """Drop → admit → for each model with work: prefill a chunk, decode a token a row."""
        self._drop()
        self._admit()
        for model in self._models.values():
            rows = [sequence for sequence in self._active if sequence.model is model]
            if rows:
                self._advance(model, rows)
        self.step_count += 1

    def _drop(self) -> None:
        now = time.monotonic()
        for sequence in [*self._active, *self._waiting]:
            reason = sequence.outside_reason(now)
            if reason is not None:
                self._end(sequence, reason)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.num_slots:
            sequence = self._waiting.popleft()
            taken = {other.slot for other in self._active if other.model is sequence.model}
            sequence.slot = min(set(range(self.num_slots)) - taken)
            self._active.append(sequence)

    def _advance(self, model: LoadedModel, rows: list[Sequence]) -> None:
        try:
            cold = next((s for s in rows if not s.is_prefilled), None)
            if cold is not None:  # one chunk of one prompt, so that running texts never stall
                model.runner.prefill(cold)
            ready = [sequence for sequence in rows if sequence.is_prefilled]
            if not ready:
                return
            logits = model.runner.decode(ready)
            choices = choose(logits, [sequence.row_state() for sequence in ready])
        except Exception as error:  # the engine edge: the rows fail, the loop goes on
            log.exception("engine_step_failed", rows=len(rows))
            for sequence in rows:
                self._end(sequence, "error", error)
            return
        self._count(len(ready))
        for sequence, row_logits, choice in zip(ready, logits, choices, strict=True):
            self._take(sequence, row_logits, choice)

    def _take(self, sequence: Sequence, logits: Tensor, choice: Choice) -> None:
        try:
            reason = sequence.push(choice.token)
            if sequence.trace is not None and sequence.num_new > len(sequence.trace):
                text_of = sequence.model.tokenizer.text_of
                sequence.trace.append(trace_token(logits, choice, text_of))
        except Exception as error:  # one row's fault stays its own
            log.exception("row_failed", job_id=sequence.generation.request.job_id)
            self._end(sequence, "error", error)
            return
        if reason is not None:
            self._end(sequence, reason)

    def _count(self, num_tokens: int) -> None:
        now = time.monotonic()
        with self._history_lock:
            self._num_tokens += num_tokens
            self._history.append((now, num_tokens))
            while self._history[0][0] < now - RATE_SECONDS:
                self._history.popleft()

    def _end(self, sequence: Sequence, reason: str, error: Exception | None = None) -> None:
        with self._wake:
            if sequence in self._active:
                self._active.remove(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)
        try:
            sequence.finish(reason, error)
        except Exception as failure:  # telling the last words failed; the end must still be told
            log.exception("row_failed", job_id=sequence.generation.request.job_id)
            sequence.fail(failure)

    def _fail_all(self, error: Exception) -> None:
        for sequence in [*self._active, *self._waiting]:
            self._end(sequence, "error", error)
