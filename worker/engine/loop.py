"""The engine: one thread that owns torch, and rows that join and leave between any two steps.

admit → prefill (in chunks) → one decode step a model → strategies → publish. Knows nothing of
Celery, SQL or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import structlog
from torch import Tensor

from core.strategies import DecodingParameters
from worker.decoding.sampling import Choice, choose, sound_rows
from worker.decoding.trace import trace_token
from worker.engine.requests import (
    BeamNotServedError,
    Delta,
    EngineError,
    EngineStopped,
    Generation,
    GenerationRequest,
    ModelFault,
    PromptTooLong,
    PromptUnusable,
    UnknownModel,
)
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.statistics import EngineStatistics, Throughput
from worker.models.loading import LoadedModel
from worker.models.runner import PREFILL_CHUNK_TOKENS
from worker.models.tokenizer import IncrementalDetokenizer

WARM_UP_SECONDS = 120.0  # a first step may compile; longer than this is a hang
log = structlog.get_logger(__name__)


class Engine:
    """Writes texts on the models it was given. ``submit`` may be called from any thread."""

    def __init__(self, models: Mapping[str, LoadedModel], *, num_slots: int) -> None:
        """Keep the models; ``num_slots`` sequences are decoded at once, all models together."""
        self._models = dict(models)
        self.num_slots = num_slots
        self.step_count = 0
        self._scheduler = Scheduler(num_slots)  # the thread's own
        self._throughput = Throughput(num_slots)
        self._wake = threading.Condition()
        self._inbox: deque[Sequence] = deque()  # guarded by _wake
        self._is_stopping = False  # guarded by _wake
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def num_active(self) -> int:
        """Sequences being decoded."""
        return self._scheduler.num_active

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted."""
        return self._scheduler.num_waiting + len(self._inbox)

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
        """Queue a text.

        Args:
            request: what to write.
            on_delta: called on the engine's thread, and must return at once. What the deltas hold
                together is the text; if it raises, the text ends with an error.

        Raises:
            UnknownModel, PromptTooLong, PromptUnusable, BeamNotServedError, EngineStopped:
                nothing was queued.
        """
        sequence = self._sequence(request, on_delta)
        with self._wake:
            if self._is_stopping or not self._thread.is_alive():
                raise EngineStopped("The engine is not running; restart the worker.")
            self._inbox.append(sequence)
            self._wake.notify_all()
        return sequence.generation

    def statistics(self) -> EngineStatistics:
        """The numbers as they stand."""
        return self._throughput.statistics()

    def warm_up(self) -> None:
        """Write a few tokens on every model, so that the first visitor does not wait for it.

        Raises:
            EngineError: a model cannot write.
        """
        for name in self._models:
            parameters = DecodingParameters(strategy="sampling", max_new_tokens=4, seed=0)
            request = GenerationRequest("warm-up", name, "Hello", parameters)
            result = self.submit(request).result(WARM_UP_SECONDS)
            if result.error is not None:
                raise EngineError(f"The model {name} cannot write: {result.error}")

    def _sequence(
        self, request: GenerationRequest, on_delta: Callable[[Delta], None] | None
    ) -> Sequence:
        model = self._models.get(request.model)
        if model is None:
            raise UnknownModel(f"This worker holds no model named {request.model!r}.")
        if request.parameters.strategy == "beam":
            raise BeamNotServedError("Beam search is not served yet; choose another strategy.")
        ids = model.tokenizer.encode(request.prompt)
        if not ids:
            raise PromptUnusable("The prompt has no tokens for this model.")
        if len(ids) >= model.info.context_length:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens, and the model's context holds"
                f" {model.info.context_length}, the new tokens included."
            )
        return Sequence(
            Generation(request, num_prompt_tokens=len(ids)),
            ids,
            detokenizer=IncrementalDetokenizer(model.tokenizer, ids),
            eos_token_ids=model.info.eos_token_ids,
            context_length=model.info.context_length,
            on_delta=on_delta,
        )

    # ---- the engine's thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_in():
                self._step()
        except BaseException:  # the engine edge: whoever waits must hear of it
            log.exception("engine_died")
            self._close(is_dead=True)
        else:
            self._close(is_dead=False)

    def _take_in(self) -> bool:
        """Wait for work and fetch what was submitted; false when the engine is to stop."""
        with self._wake:
            if not self._inbox and not self._scheduler.has_work:
                for model in self._models.values():
                    model.runner.rest()
                self._wake.wait_for(lambda: self._inbox or self._is_stopping)
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            return not self._is_stopping

    def _step(self) -> None:
        """Drop → admit → for each model with work: prefill, decode a token a row."""
        for sequence, reason in self._scheduler.due(time.monotonic()):
            self._end(sequence, reason)
        self._scheduler.admit()
        for name, model in self._models.items():
            self._prefill(name, model)
            self._decode(name, model)
        self.step_count += 1

    def _prefill(self, name: str, model: LoadedModel) -> None:
        """One chunk's worth of prompts, so that running texts never stall for long."""
        budget = PREFILL_CHUNK_TOKENS
        for sequence in self._scheduler.prefilling(name):
            try:
                while budget > 0 and not sequence.is_prefilled:
                    before = sequence.num_cached
                    model.runner.prefill(sequence)
                    budget -= sequence.num_cached - before
            except Exception as error:  # the engine edge: one prompt's fault stays its own
                log.exception("prefill_failed", job_id=sequence.job_id)
                self._end(sequence, "error", error)

    def _decode(self, name: str, model: LoadedModel) -> None:
        rows = self._scheduler.decoding(name)
        if not rows:
            return
        try:
            logits = model.runner.decode(rows)
            sound = sound_rows(logits)
            if not all(sound):
                logits, rows = self._drop_unsound(model, logits, rows, sound)
            choices = choose(logits, [row.row_state() for row in rows])
        except Exception as error:  # the engine edge: the rows fail, the loop goes on
            log.exception("engine_step_failed", job_ids=[row.job_id for row in rows])
            for row in rows:
                self._end(row, "error", error)
            return
        self._throughput.count(len(rows))
        for row, row_logits, choice in zip(rows, logits, choices, strict=True):
            self._take(row, model, row_logits, choice)

    def _drop_unsound(
        self, model: LoadedModel, logits: Tensor, rows: list[Sequence], sound: list[bool]
    ) -> tuple[Tensor, list[Sequence]]:
        for row, is_sound in zip(rows, sound, strict=True):
            if not is_sound:
                model.runner.wipe(row)
                self._end(row, "error", ModelFault("The model gave numbers that are not finite."))
        kept = [index for index, is_sound in enumerate(sound) if is_sound]
        return logits[kept], [rows[index] for index in kept]

    def _take(self, row: Sequence, model: LoadedModel, logits: Tensor, choice: Choice) -> None:
        try:
            trace = None
            if row.trace is not None:
                trace = trace_token(logits, choice, model.tokenizer.text_of)
            reason = row.push(choice.token, trace)
        except Exception as error:  # one row's fault stays its own
            log.exception("row_failed", job_id=row.job_id)
            self._end(row, "error", error)
            return
        if reason is not None:
            self._end(row, reason)

    def _end(self, sequence: Sequence, reason: str, error: Exception | None = None) -> None:
        self._scheduler.remove(sequence)
        try:
            sequence.finish(reason, error)
        except Exception as failure:  # telling the last words failed; the end must still be told
            log.exception("row_failed", job_id=sequence.job_id)
            sequence.fail(failure)

    def _close(self, *, is_dead: bool) -> None:
        """Leave nobody waiting."""
        with self._wake:
            self._is_stopping = True
            left = [*self._scheduler.clear(), *self._inbox]
            self._inbox.clear()
        error = EngineStopped("The engine has stopped before the text was done.")
        for sequence in left:
            if is_dead:
                sequence.generation.abandon(error)
            else:
                sequence.fail(error)
