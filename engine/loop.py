"""The engine: one thread that owns the models, and sequences that join and leave between two steps.

admit → prefill (in chunks) → one decode step for each model → sample → publish. Knows nothing of
Celery, SQL or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import structlog

from textmill.core.strategies import DecodingParameters
from textmill.engine.beams import BeamSequence
from textmill.engine.decode_batch import DecodeBatch, VerifiedDraft
from textmill.engine.model_drafting import ModelDrafting
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
from textmill.engine.sampling.sampler import Sampler
from textmill.engine.scheduler import Scheduler
from textmill.engine.sequence import TokenSequence
from textmill.engine.statistics import EngineStatistics, Throughput
from textmill.engine.token_rules import rules_for
from textmill.tokenizing.safe_tokenizer import TokenizerBusy, TokenizerFault

WARM_UP_SECONDS = 120.0  # a first step may compile; a longer one is considered a hang
log = structlog.get_logger(__name__)


class InferenceEngine:
    """Generates text with the given models. ``submit`` may be called from any thread."""

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        *,
        num_slots: int,
        cache_bytes: int | None = None,
        on_prefill: Callable[[str], None] = lambda prompt: None,
        speculates: bool = True,
    ) -> None:
        """Create the engine; ``start`` starts its thread.

        Args:
            models: by name.
            num_slots: sequences that are decoded at once, of all models together.
            cache_bytes: limit on their keys and values; requests that do not fit wait. ``None``
                for no limit.
            on_prefill: called with each prompt before its prefill begins, also if the prefix cache
                contains all of it.
            speculates: whether tokens may be guessed ahead, where the compiled kernels compute.
        """
        self._models = dict(models)
        self._on_prefill = on_prefill
        self.num_slots = num_slots
        self.step_count = 0
        self._scheduler = Scheduler(  # used by the engine's thread only
            num_slots,
            cache_bytes=cache_bytes,
            bytes_per_token={name: m.runner.bytes_per_token for name, m in models.items()},
        )
        self._samplers = {name: _sampler(model.runner) for name, model in models.items()}
        self._speculates = speculates
        self._drafting: dict[str, ModelDrafting] = {}  # of the models that the kernels compute
        for name, model in models.items():
            self._set_drafting(name, model)
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
        """Sequences that wait for admission."""
        return self._scheduler.num_waiting + len(self._inbox)

    def start(self) -> None:
        """Start the thread that owns the models."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End the thread after its current step; running sequences end with an error."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def submit(
        self, request: GenerationRequest, on_delta: Callable[[Delta], None] | None = None
    ) -> Generation:
        """Queue a request.

        Args:
            request: the prompt and its parameters.
            on_delta: called on the engine's thread with each new part of the text; it must return
                at once. If it raises, the generation ends with an error.

        Raises:
            UnknownModel, PromptTooLong, PromptUnusable, ParametersUnusable, EngineStopped,
            EngineError:
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
        """Return the current statistics."""
        return self._throughput.statistics()

    def warm_up(self) -> None:
        """Generate a few tokens with every model, so that the first request does not wait for it.

        Raises:
            EngineError: a model cannot generate.
        """
        for name in list(self._models):
            self._try_out(name, WARM_UP_SECONDS)

    def add_model(self, model: LoadedModel) -> None:
        """Add a model and generate a few tokens with it, while other sequences continue.

        Args:
            model: replaces a model of the same name, which must have no sequences.

        Raises:
            EngineError: the model cannot generate and is not added, or the engine is not running.
        """
        self._between_steps(partial(self._install_model, model))
        try:
            self._try_out(model.name, None)  # it may wait long for running sequences
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
            raise EngineError(f"The model {name} cannot generate text: {result.error}")

    def _between_steps(self, change: Callable[[], None]) -> None:
        """Run a change on the engine's thread between two steps, and wait for it."""
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
            raise UnknownModel(f"This worker has no model named {request.model!r}.")
        try:
            given = request.prompt_ids
            ids = model.tokenizer.encode(request.prompt) if given is None else list(given)
            rules = rules_for(request.parameters, model.tokenizer, model.info.vocabulary_size)
        except TokenizerFault as fault:
            raise PromptUnusable(str(fault)) from None
        except TokenizerBusy as busy:
            raise EngineError(str(busy)) from None
        if not ids:
            raise PromptUnusable("The prompt has no tokens for this model.")
        if max(ids) >= model.info.vocabulary_size:
            raise PromptUnusable(
                f"The prompt has the token {max(ids)}, but the model has"
                f" {model.info.vocabulary_size} tokens."
                + ("" if given else " Its tokenizer.json is another model's.")
            )
        if len(ids) >= model.info.context_length:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens, but the model's context holds"
                f" {model.info.context_length}, including the new tokens."
            )
        kind = BeamSequence if request.parameters.strategy == "beam" else TokenSequence
        return kind(
            Generation(request, num_prompt_tokens=len(ids)),
            ids,
            detokenizer=IncrementalDetokenizer(model.tokenizer, ids),
            eos_token_ids=model.info.eos_token_ids,
            context_length=model.info.context_length,
            rules=rules,
            on_delta=on_delta,
        )

    # ---- the engine's thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._accept():
                self._step()
        except BaseException:  # the engine edge: waiting callers must get an error
            log.exception("engine_died")
            self._close(is_dead=True)
        else:
            self._close(is_dead=False)

    def _accept(self) -> bool:
        """Wait for work and accept what was submitted; false if the engine is to stop."""
        with self._wake:
            if not self._inbox and not self._changes and not self._scheduler.has_work:
                for model in self._models.values():
                    model.runner.rest()
                self._wake.wait_for(lambda: self._inbox or self._changes or self._is_stopping)
            while self._changes:
                change, done = self._changes.popleft()
                try:
                    done.set_result(change())
                except Exception as error:  # the engine edge: the caller gets the error
                    done.set_exception(error)
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            return not self._is_stopping

    def _install_model(self, model: LoadedModel) -> None:
        self._samplers[model.name] = _sampler(model.runner)
        self._drafting.pop(model.name, None)
        self._set_drafting(model.name, model)
        self._scheduler.set_bytes_per_token(model.name, model.runner.bytes_per_token)
        self._models[model.name] = model  # last, because submit looks here

    def _drop_model(self, name: str) -> None:
        del self._models[name], self._samplers[name]
        self._prefilling.pop(name, None)
        self._drafting.pop(name, None)

    def _set_drafting(self, name: str, model: LoadedModel) -> None:
        if self._speculates and isinstance(model.runner, KernelRunner):
            self._drafting[name] = ModelDrafting(model.ngrams)

    def _step(self) -> None:
        """Drop → admit → for each model with work: prefill, decode one token for each sequence."""
        for sequence, reason in self._scheduler.to_be_ended(time.monotonic()):
            self._end(sequence, reason)
        self._scheduler.admit()
        for name, model in self._models.items():
            self._prefill(name, model)
            self._decode(name, model)
        self.step_count += 1

    def _prefill(self, name: str, model: LoadedModel) -> None:
        """Compute one chunk of prompts, so that running sequences never stall for long."""
        sequences = self._scheduler.prefilling(name)
        if not sequences:
            return
        runner = model.runner
        chunks = self._prefilling[name].plan(
            sequences,
            runner.chunk_tokens(self._scheduler.num_decoding_entries()),
            recall=partial(self._recall, runner),
            chunk_tokens=None if runner.is_ragged else PREFILL_CHUNK_TOKENS,
        )
        if not chunks:  # all tokens were found in the prefix cache
            return
        batches = [chunks] if runner.is_ragged else [[chunk] for chunk in chunks]
        for batch in batches:
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
        self._on_prefill(sequence.generation.request.prompt)
        try:
            runner.recall(sequence)
        except Exception:  # the engine edge: the prompt is computed instead
            log.exception("recall_failed", job_id=sequence.job_id)
            sequence.num_cached = 0

    def _decode(self, name: str, model: LoadedModel) -> None:
        sequences = self._scheduler.decoding(name)
        if not sequences:
            return
        drafting = self._drafting.get(name)
        drafts = {} if drafting is None else drafting.draft(sequences)
        batch, sampler = DecodeBatch(sequences, drafts), self._samplers[name]
        try:
            logits = batch.compute(model.runner)
            drawn = batch.sample(logits, sampler, model.tokenizer.text_of)
        except Exception as error:  # the engine edge: these sequences fail, the loop goes on
            log.exception("engine_step_failed", job_ids=[s.job_id for s in sequences])
            for sequence in sequences:
                self._end(sequence, "error", error)
            return
        self._throughput.count(
            len(sequences),
            num_drafted=batch.num_drafted,
            num_accepted=sum(one.num_accepted for one in drawn),
        )
        for one in drawn:
            if drafting is not None and one.draft:
                drafting.note(one.sequence, one.num_accepted)
            self._advance_single(model, one)
        for sequence in batch.beams:
            self._advance_beams(model, sampler, sequence, logits[batch.rows(sequence)])

    def _advance_single(self, model: LoadedModel, drawn: VerifiedDraft) -> None:
        """Append a sequence's next token, after the accepted tokens of its draft."""
        sequence = drawn.sequence
        for place, sampled in enumerate(drawn.tokens[: drawn.num_accepted + 1]):
            if place and sequence.reason_to_end(time.monotonic()) is not None:
                return  # it ends before the next step, after the token that it would end after
            if sampled.token is None:
                self._end_not_finite(model, sequence, len(drawn.draft))
                return
            sequence.num_cached += min(place, 1)  # the token before, which was guessed
            self._advance(sequence, partial(sequence.push, sampled.token, sampled.trace))
            if sequence.generation.done():
                return
        if not drawn.is_finite:
            # A wrong guess left NaN behind the text. The text is computed again after a wipe.
            model.runner.wipe(sequence.slot, len(sequence.ids) + len(drawn.draft))
            sequence.num_cached = 0

    def _advance_beams(
        self, model: LoadedModel, sampler: Sampler, sequence: BeamSequence, logits: Any
    ) -> None:
        if sampler.are_finite(logits):
            self._advance(sequence, partial(sequence.advance, logits, model, sampler))
        else:
            self._end_not_finite(model, sequence)

    def _end_not_finite(
        self, model: LoadedModel, sequence: TokenSequence, num_drafted: int = 0
    ) -> None:
        """End a sequence whose logits are not finite, and erase its keys and values."""
        for entry in sequence.batch_entries():
            model.runner.wipe(entry.slot, len(entry.ids) + num_drafted)
        error = ModelFault("The model returned numbers that are not finite.")
        self._end(sequence, "error", error)

    def _advance(self, sequence: TokenSequence, advance: Callable[[], str | None]) -> None:
        try:
            reason = advance()
        except Exception as error:  # the error of one sequence must not affect others
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
        except Exception as failure:  # the last delta failed; the result must still be set
            log.exception("row_failed", job_id=sequence.job_id)
            sequence.fail(failure)

    def _close(self, *, is_dead: bool) -> None:
        """End everything that waits or runs."""
        with self._wake:
            self._is_stopping = True
            left = [*self._scheduler.clear(), *self._inbox]
            self._inbox.clear()
            changes = [done for _, done in self._changes]
            self._changes.clear()
        error = EngineStopped("The engine stopped before the text was complete.")
        for done in changes:
            done.set_exception(error)
        for sequence in left:
            if is_dead:
                sequence.generation.abandon(error)
            else:
                sequence.fail(error)


def _sampler(runner: ModelRunner) -> Sampler:
    if isinstance(runner, KernelRunner):
        return KernelSampler(runner.sample)
    from textmill.engine.sampling.plain_sampler import TorchSampler  # noqa: PLC0415 - as placement

    return TorchSampler()
