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

from core.strategies import DecodingParameters
from worker.decoding.sampling import choose
from worker.engine.requests import (
    Delta, EngineStopped, Generation, GenerationRequest, GenerationResult, PromptTooLong,
    StrategyNotServed, UnknownModel,
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
    """Writes texts on the models it was given."""

    def __init__(self, models: Mapping[str, LoadedModel], *, num_slots: int) -> None:
        self._models = dict(models)
        self.num_slots = num_slots
        self._wake = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._is_stopping = False
        self.step_count = 0
        self._num_tokens = 0
        self._history: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout_seconds)

    def submit(self, request: GenerationRequest, on_delta: Callable[[Delta], None] | None = None) -> Generation:
        model = self._models.get(request.model)
        if model is None:
            raise UnknownModel(f"This worker holds no model named {request.model!r}.")
        if request.parameters.strategy == "beam":
            raise StrategyNotServed("Beam search is not served yet; choose another strategy.")
        ids = model.tokenizer.encode(request.prompt)
        if len(ids) >= model.info.context_length:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens, and the model's context holds {model.info.context_length}."
            )
        generation = Generation(request, num_prompt_tokens=len(ids))
        sequence = Sequence(generation, ids, model, on_delta)
        with self._wake:
            if self._is_stopping or not self._thread.is_alive():
                raise EngineStopped("The engine is stopping.")
            self._waiting.append(sequence)
            self._wake.notify()
        return generation

    def statistics(self) -> EngineStatistics:
        now = time.monotonic()
        recent = [(at, n) for at, n in list(self._history) if now - at <= RATE_SECONDS]
        num = sum(n for _, n in recent)
        occupancy = num / len(recent) / self.num_slots if recent else 0.0
        return EngineStatistics(self._num_tokens, self.step_count, occupancy, num / RATE_SECONDS)

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
        finally:
            self._fail_all(EngineStopped("The engine has stopped."))

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._waiting or self._active or self._is_stopping):
                self._wake.wait()
            return not self._is_stopping

    def _step(self) -> None:
        self._drop()
        self._admit()
        for model in self._models.values():
            rows = [s for s in self._active if s.model is model]
            if rows:
                self._advance(model, rows)
        self.step_count += 1

    def _drop(self) -> None:
        now = time.monotonic()
        for sequence in [*self._active, *self._waiting]:
            reason = sequence.outside_reason(now)
            if reason:
                self._end(sequence, reason)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.num_slots:
            sequence = self._waiting.popleft()
            taken = {s.slot for s in self._active if s.model is sequence.model}
            sequence.slot = min(set(range(self.num_slots)) - taken)
            self._active.append(sequence)

    def _advance(self, model: LoadedModel, rows: list[Sequence]) -> None:
        try:
            prefilling = [s for s in rows if s.num_cached < len(s.ids) - 1]
            if prefilling:
                model.runner.prefill(prefilling[0])
            ready = [s for s in rows if s.num_cached == len(s.ids) - 1]
            if not ready:
                return
            logits = model.runner.decode(ready)
            tokens = choose(logits, [s.parameters for s in ready], [s.ids for s in ready], [s.num_new for s in ready])
        except Exception as error:
            log.exception("engine_step_failed")
            for sequence in rows:
                self._end(sequence, "error", error)
            return
        self._num_tokens += len(ready)
        self._history.append((time.monotonic(), len(ready)))
        while self._history and self._history[0][0] < time.monotonic() - RATE_SECONDS:
            self._history.popleft()
        for sequence, token in zip(ready, tokens, strict=True):
            try:
                reason = sequence.push(token)
            except Exception as error:
                self._end(sequence, "error", error)
                continue
            if reason:
                self._end(sequence, reason)

    def _end(self, sequence: Sequence, reason: str, error: Exception | None = None) -> None:
        if sequence in self._active:
            self._active.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        sequence.finish(reason, error)

    def _fail_all(self, error: Exception) -> None:
        for sequence in [*self._active, *self._waiting]:
            self._end(sequence, "error", error)
