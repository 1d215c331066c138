"""One loaded engine, and its measurements."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from textmill.core.catalog.models_file import ModelSpec
from textmill.core.strategies import DecodingParameters
from textmill.engine import Generation, GenerationRequest, InferenceEngine
from textmill.engine.models.loading import load
from textmill.engine.models.runner import KernelRunner
from textmill.engine.sampling.native_sampler import KernelSampler

PROMPT = "Related work. Neural machine translation has been studied"
NUM_SLOTS = 64
LONG_BATCH, LONG_CONTEXT, LONG_STEPS = 16, 1500, 32
PATIENCE_SECONDS = 900.0
TRACE_ROUNDS = 5
NUM_LONG, LONG_TOKENS = 4, 4402  # the length of a paper
NUM_SHORT, SHORT_TOKENS, SHORT_NEW = 12, 20, 8


class Bench:
    """A model in an engine."""

    def __init__(
        self,
        source: str,
        cache: Path,
        dtype: str,
        started: float,
        *,
        num_slots: int = NUM_SLOTS,
        natural_ends: bool = False,
        isa: str = "auto",
    ) -> None:
        """Load, warm up and generate a first token.

        Args:
            source: as in the models file.
            cache: the folder of converted models.
            dtype: as in the models file.
            started: the start of the process, by ``time.perf_counter``.
            num_slots: sequences at once.
            natural_ends: whether end tokens end a sequence.
            isa: the kernels' instruction set, as in ``TEXTMILL_KERNELS_ISA``.
        """
        self._natural_ends = natural_ends
        spec = ModelSpec("m", source, None, dtype, True, "")
        model = load(
            spec,
            cache_dir=cache,
            dtype=dtype,
            num_slots=num_slots,
            kernel_dir=cache / "kernels",
            instruction_set=isa,
            report=lambda _: None,
        )
        self._info = model.info
        ends = model.info.eos_token_ids if natural_ends else frozenset()
        self._model = dataclasses.replace(
            model, info=dataclasses.replace(model.info, eos_token_ids=ends)
        )
        self._clock: dict[str, float] = {}
        self._time_calls()
        self._engine = InferenceEngine(
            {"m": self._model},
            num_slots=num_slots,
            speculates=False,  # rates of plain steps, whatever the text repeats
        )
        self._engine.start()
        self._engine.warm_up()
        self._number = 0
        self._run(1, 1)
        self._first_token_seconds = time.perf_counter() - started
        self._run(8, 16)

    def facts(self) -> dict[str, Any]:
        """The loaded model, and the seconds from the process's start to a first token."""
        return {
            "dtype": self._info.dtype,
            "family": self._info.family,
            "instruction_set": self._info.instruction_set,
            "first_token_seconds": self._first_token_seconds,
        }

    def decode(self, batch: int, num_new: int) -> dict[str, Any]:
        """Tokens per second of ``batch`` sequences at once, and each part's share of the time."""
        before, spent = dict(self._clock), self._seconds()
        seconds, num_tokens = self._run(batch, num_new)
        shares = {name: (self._clock[name] - before[name]) / seconds for name in self._clock}
        for name, total in self._seconds().items():
            shares[name] = (total - spent[name]) / seconds
        return {"tokens_per_second": num_tokens / seconds, "shares": shares}

    def prefill(self, num_tokens: int) -> float:
        """Prompt tokens per second of one long prompt, in the runner's own chunks."""
        ids = [self._number % 400 + 5 + i % 3000 for i in range(num_tokens + 1)]
        entry = _Entry(ids)
        runner = self._model.runner
        started = time.perf_counter()
        while entry.num_cached < num_tokens:
            length = min(runner.chunk_tokens(0), num_tokens - entry.num_cached)
            runner.prefill([(entry, entry.num_cached + length)])
        seconds = time.perf_counter() - started
        runner.release(entry.slot)
        return num_tokens / seconds

    def long_decode(self) -> float:
        """Tokens per second of ``LONG_BATCH`` sequences with ``LONG_CONTEXT`` tokens each."""
        runner = self._model.runner
        context = min(LONG_CONTEXT, self._info.context_length - LONG_STEPS - 1)
        entries = [
            _Entry([5 + (slot * 7 + i) % 3000 for i in range(context + 1)], slot)
            for slot in range(LONG_BATCH)
        ]
        for entry in entries:
            while entry.num_cached < context:
                length = min(runner.chunk_tokens(0), context - entry.num_cached)
                runner.prefill([(entry, entry.num_cached + length)])
        started = time.perf_counter()
        for step in range(LONG_STEPS):
            runner.decode(entries)
            for entry in entries:
                entry.ids.append(50 + step)
        seconds = time.perf_counter() - started
        for entry in entries:
            runner.release(entry.slot)
        return LONG_BATCH * LONG_STEPS / seconds

    def beside_long(self) -> dict[str, Any]:
        """Seconds to the first token of short prompts, alone and beside long ones."""
        idle = [self._first_token(SHORT_TOKENS) for _ in range(NUM_SHORT)]
        long_tokens = min(LONG_TOKENS, self._info.context_length - 1)
        long = [self._submit(long_tokens, 1) for _ in range(NUM_LONG)]
        beside: list[float] = []
        while len(beside) < NUM_SHORT and not all(generation.done() for generation in long):
            beside.append(self._first_token(SHORT_TOKENS))
        ends = [own.result(PATIENCE_SECONDS).first_token_seconds or 0.0 for own in long]
        return {"idle": idle, "beside": beside, "long": max(ends), "long_tokens": long_tokens}

    def _first_token(self, num_tokens: int) -> float:
        result = self._submit(num_tokens, SHORT_NEW).result(PATIENCE_SECONDS)
        if result.first_token_seconds is None:
            raise RuntimeError(f"A sequence has no token: {result.finish_reason} {result.error}")
        return result.first_token_seconds

    def _submit(self, num_tokens: int, num_new: int) -> Generation:
        """Submit a prompt of ``num_tokens`` tokens, a different one each time."""
        self._number += 1
        text = f"Paper {self._number}: " + " ".join(
            f"{PROMPT} {self._number + place}" for place in range(num_tokens // 8 + 1)
        )
        ids = self._model.tokenizer.encode(text)[:num_tokens]
        parameters = DecodingParameters(strategy="greedy", max_new_tokens=num_new, seed=0)
        prompt = self._model.tokenizer.decode(ids)
        return self._engine.submit(GenerationRequest("long", "m", prompt, parameters))

    def traced(self, batch: int, num_new: int) -> float:
        """The throughput with traces as a share of that without: medians of runs in turn."""
        plain, traced = [], []
        for _ in range(TRACE_ROUNDS):
            plain.append(self._run(batch, num_new)[0])
            traced.append(self._run(batch, num_new, trace=True)[0])
        return sorted(plain)[TRACE_ROUNDS // 2] / sorted(traced)[TRACE_ROUNDS // 2]

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.stop(PATIENCE_SECONDS)

    def _run(self, batch: int, num_new: int, *, trace: bool = False) -> tuple[float, int]:
        """Seconds from the first submission to the last result, and the tokens generated.

        Prompts differ from run to run, except with natural ends.
        """
        self._number += 1
        run = "" if self._natural_ends else f" {self._number}"
        started = time.perf_counter()
        generations = [
            self._engine.submit(
                GenerationRequest(
                    str(index),
                    "m",
                    f"{PROMPT} {index}{run}",
                    DecodingParameters(
                        strategy="sampling",
                        temperature=0.7,
                        max_new_tokens=num_new,
                        seed=index + 1,
                        trace=trace,
                    ),
                )
            )
            for index in range(batch)
        ]
        results = [generation.result(PATIENCE_SECONDS) for generation in generations]
        seconds = time.perf_counter() - started
        for result in results:
            if result.num_completion_tokens != num_new and not self._natural_ends:
                raise RuntimeError(f"A sequence ended early: {result.finish_reason} {result.error}")
        return seconds, sum(result.num_completion_tokens for result in results)

    def _seconds(self) -> dict[str, float]:
        runner = self._model.runner
        return runner.seconds() if isinstance(runner, KernelRunner) else {}

    def _time_calls(self) -> None:
        """Count the time of the model's steps, its prompts, and sampling."""
        timed = [
            (self._model.runner, "decode", "decode"),
            (self._model.runner, "prefill", "prefill"),
            (self._sampler_class(), "sample", "sampling"),
        ]
        for owner, name, label in timed:
            self._clock[label] = 0.0
            setattr(owner, name, self._timed(getattr(owner, name), label))

    def _sampler_class(self) -> type:
        """The class of the model's sampler; PyTorch is imported only if it computes."""
        if isinstance(self._model.runner, KernelRunner):
            return KernelSampler
        from textmill.engine.sampling.plain_sampler import TorchSampler  # noqa: PLC0415 - see above

        return TorchSampler

    def _timed(self, function: Any, label: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._clock[label] += time.perf_counter() - started

        return call


class _Entry:
    def __init__(self, ids: list[int], slot: int = NUM_SLOTS - 1) -> None:
        self.ids = ids
        self.slot = slot
        self.num_cached = 0
