"""The engine: one thread that owns torch, and rows that join and leave between any two steps.

admit → prefill (in chunks) → one decode step a model → strategies → publish. Knows nothing of
Celery, SQL or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial

import structlog

from textmill.core.strategies import DecodingParameters
from textmill.engine.beams import BeamSequence
from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.loading import LoadedModel
from textmill.engine.models.runner import PREFILL_CHUNK_TOKENS, KernelRunner, ModelRunner
from textmill.engine.models.tokenizer import IncrementalDetokenizer
from textmill.engine.prefilling import Prefilling
from textmill.engine.requests import (
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
from textmill.engine.sampling.native_sampler import KernelSampler
from textmill.engine.sampling.sampler import Sampler, TorchSampler
from textmill.engine.sampling.torch_sampler import finite_rows
from textmill.engine.scheduler import Scheduler
from textmill.engine.sequence import TokenSequence
from textmill.engine.statistics import EngineStatistics, Throughput
from textmill.tokenizing.safe_tokenizer import TokenizerBusy, TokenizerFault

WARM_UP_SECONDS = 120.0  # a first step may compile; longer than this is a hang
log = structlog.get_logger(__name__)


class InferenceEngine:
    """Writes texts on the models it was given. ``submit`` may be called from any thread."""

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        *,
        num_slots: int,
        cache_bytes: int | None = None,
        on_prefill: Callable[[str], None] = lambda prompt: None,
    ) -> None:
        """Keep the models.

        Args:
            models: by name.
            num_slots: texts that are written at once, all models together.
            cache_bytes: bound on their keys and values; what does not fit waits. ``None`` for no
                bound.
            on_prefill: called with a prompt before each of its chunks is read.
        """
        self._models = dict(models)
        self._on_prefill = on_prefill
        self.num_slots = num_slots
        self.step_count = 0
        self._scheduler = Scheduler(  # the thread's own
            num_slots,
            cache_bytes=cache_bytes,
            bytes_per_token={name: m.runner.bytes_per_token for name, m in models.items()},
        )
        self._samplers = {name: _sampler(model.runner) for name, model in models.items()}
        self._prefilling: defaultdict[str, Prefilling] = defaultdict(Prefilling)  # by model
        self._throughput = Throughput(num_slots)
        self._wake = threading.Condition()
        self._inbox: deque[TokenSequence] = deque()  # guarded by _wake
        self._changes: deque[tuple[Callable[[], None], Future[None]]] = deque()  # guarded by _wake
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
            UnknownModel, PromptTooLong, PromptUnusable, EngineStopped, EngineError:
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
        for name in list(self._models):
            self._try_out(name, WARM_UP_SECONDS)

    def add_model(self, model: LoadedModel) -> None:
        """Hold one more model, and write a few tokens on it; other texts go on meanwhile.

        Args:
            model: one of the same name is replaced, which may have no texts then.

        Raises:
            EngineError: it cannot write, and is not held; or the engine is not running.
        """
        self._between_steps(partial(self._take_model, model))
        try:
            self._try_out(model.name, None)  # behind running texts it may wait for long
        except EngineStopped:
            raise
        except EngineError:
            self._between_steps(partial(self._drop_model, model.name))
            raise

    def _try_out(self, name: str, timeout_seconds: float | None) -> None:
        parameters = DecodingParameters(strategy="sampling", max_new_tokens=4, seed=0)
        request = GenerationRequest("warm-up", name, "Hello", parameters)
        result = self.submit(request).result(timeout_seconds)
        if isinstance(result.error, EngineStopped):
            raise result.error
        if result.error is not None:
            raise EngineError(f"The model {name} cannot write: {result.error}")

    def _between_steps(self, change: Callable[[], None]) -> None:
        """Let the engine's thread change what no step may see half done, and wait for it."""
        done: Future[None] = Future()
        with self._wake:
            if self._is_stopping or not self._thread.is_alive():
                raise EngineStopped("The engine is not running; restart the worker.")
            self._changes.append((change, done))
            self._wake.notify_all()
        done.result()

    def _sequence(
        self, request: GenerationRequest, on_delta: Callable[[Delta], None] | None
    ) -> TokenSequence:
        model = self._models.get(request.model)
        if model is None:
            raise UnknownModel(f"This worker holds no model named {request.model!r}.")
        try:
            ids = model.tokenizer.encode(request.prompt)
        except TokenizerFault as fault:
            raise PromptUnusable(str(fault)) from None
        except TokenizerBusy as busy:
            raise EngineError(str(busy)) from None
        if not ids:
            raise PromptUnusable("The prompt has no tokens for this model.")
        if max(ids) >= model.info.vocabulary_size:
            raise PromptUnusable(
                f"The tokenizer gives the token {max(ids)}, but the model knows"
                f" {model.info.vocabulary_size} tokens; its tokenizer.json is another model's."
            )
        if len(ids) >= model.info.context_length:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens, and the model's context holds"
                f" {model.info.context_length}, the new tokens included."
            )
        kind = BeamSequence if request.parameters.strategy == "beam" else TokenSequence
        return kind(
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
            if not self._inbox and not self._changes and not self._scheduler.has_work:
                for model in self._models.values():
                    model.runner.rest()
                self._wake.wait_for(lambda: self._inbox or self._changes or self._is_stopping)
            while self._changes:
                change, done = self._changes.popleft()
                try:
                    done.set_result(change())
                except Exception as error:  # the engine edge: it fails for whoever asked for it
                    done.set_exception(error)
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            return not self._is_stopping

    def _take_model(self, model: LoadedModel) -> None:
        self._samplers[model.name] = _sampler(model.runner)
        self._scheduler.weigh(model.name, model.runner.bytes_per_token)
        self._models[model.name] = model  # at last: whoever submits looks here

    def _drop_model(self, name: str) -> None:
        del self._models[name], self._samplers[name]
        self._prefilling.pop(name, None)

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
        rows = self._scheduler.prefilling(name)
        if not rows:
            return
        runner = model.runner
        chunks = self._prefilling[name].plan(
            rows,
            runner.chunk_tokens(self._scheduler.num_decoding_rows()),
            recall=partial(self._recall, runner),
            chunk_tokens=None if runner.is_ragged else PREFILL_CHUNK_TOKENS,
        )
        if not chunks:  # all is known already
            return
        batches = [chunks] if runner.is_ragged else [[chunk] for chunk in chunks]
        for batch in batches:
            for sequence, _ in batch:
                self._on_prefill(sequence.generation.request.prompt)
            try:
                runner.prefill(batch)
                for sequence, _ in batch:
                    if sequence.is_prefilled:
                        runner.keep(sequence)
            except Exception as error:  # the engine edge: the prompts fail, the loop goes on
                log.exception("prefill_failed", job_ids=[s.job_id for s, _ in batch])
                for sequence, _ in batch:
                    self._end(sequence, "error", error)

    def _recall(self, runner: ModelRunner, sequence: TokenSequence) -> None:
        try:
            runner.recall(sequence)
        except Exception:  # the engine edge: what cannot be recalled is computed
            log.exception("recall_failed", job_id=sequence.job_id)
            sequence.num_cached = 0

    def _decode(self, name: str, model: LoadedModel) -> None:
        sequences = self._scheduler.decoding(name)
        if not sequences:
            return
        places: dict[TokenSequence, slice] = {}
        rows: list[BatchEntry] = []
        for sequence in sequences:
            own = sequence.rows()
            places[sequence] = slice(len(rows), len(rows) + len(own))
            rows += own
        try:
            logits = model.runner.decode(rows)
            single = [s for s in sequences if not isinstance(s, BeamSequence)]
            states = [s.row_state() for s in single]
            single_logits = logits
            if len(single) < len(rows):
                single_logits = logits[[places[s].start for s in single]]
            text_of = model.tokenizer.text_of
            chosen = self._samplers[name].sample(single_logits, states, text_of)
        except Exception as error:  # the engine edge: the rows fail, the loop goes on
            log.exception("engine_step_failed", job_ids=[s.job_id for s in sequences])
            for sequence in sequences:
                self._end(sequence, "error", error)
            return
        self._throughput.count(len(sequences))
        for sequence, choice in zip(single, chosen, strict=True):
            if choice.token is None:
                self._spoil(model, sequence)
            else:
                self._take(sequence, partial(sequence.push, choice.token, choice.trace))
        for sequence in sequences:
            if isinstance(sequence, BeamSequence):
                part = logits[places[sequence]]
                if not all(finite_rows(part)):
                    self._spoil(model, sequence)
                    continue
                self._take(sequence, partial(sequence.advance, part, model))

    def _spoil(self, model: LoadedModel, sequence: TokenSequence) -> None:
        """End a text whose numbers are not finite, and leave nothing of them."""
        for row in sequence.rows():
            model.runner.wipe(row.slot, len(row.ids))
        self._end(sequence, "error", ModelFault("The model gave numbers that are not finite."))

    def _take(self, sequence: TokenSequence, advance: Callable[[], str | None]) -> None:
        try:
            reason = advance()
        except Exception as error:  # one text's fault stays its own
            log.exception("row_failed", job_id=sequence.job_id)
            self._end(sequence, "error", error)
            return
        if reason is not None:
            self._end(sequence, reason)

    def _end(self, sequence: TokenSequence, reason: str, error: Exception | None = None) -> None:
        self._scheduler.remove(sequence)
        for slot in sequence.slots:
            self._models[sequence.model].runner.release(slot)
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
            changes = [done for _, done in self._changes]
            self._changes.clear()
        error = EngineStopped("The engine has stopped before the text was done.")
        for done in changes:
            done.set_exception(error)
        for sequence in left:
            if is_dead:
                sequence.generation.abandon(error)
            else:
                sequence.fail(error)


def _sampler(runner: ModelRunner) -> Sampler:
    return KernelSampler(runner.sample) if isinstance(runner, KernelRunner) else TorchSampler()
