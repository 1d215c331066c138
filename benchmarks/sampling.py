"""The time of sampling a step of 64 sequences by the compiled kernels, by strategy."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.figures import Section
from benchmarks.processes import BenchmarkError, Workspace
from textmill.core.strategies import DecodingParameters
from textmill.engine.kernels.build import Kernels, NoKernels, kernels
from textmill.engine.kernels.interface import Spec
from textmill.engine.models.threads import num_threads
from textmill.engine.sampling.native_sampler import KernelSampler
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.token_rules import rules_for

VOCABULARY, ROWS, HISTORY, ROUNDS = 49_152, 64, 600, 40  # as SmolLM2, with prompts and some text
_COMBINED: dict[str, Any] = {"top_k": 40, "top_p": 0.95, "min_p": 0.02}
_PENALTIES: dict[str, Any] = {"frequency_penalty": 0.3, "presence_penalty": 0.2}
_DRY: dict[str, Any] = {"dry_multiplier": 0.8, "dry_sequence_breakers": ("10", "25", "1", "9")}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"strategy": "greedy"},
    "sampling": {"strategy": "sampling"},
    "top_k 40": {"strategy": "top_k", "top_k": 40},
    "top_p 0.95": {"strategy": "top_p", "top_p": 0.95},
    "top_p 0.95, repetition penalty": {
        "strategy": "top_p",
        "top_p": 0.95,
        "repetition_penalty": 1.1,
    },
    "typical 0.9": {"strategy": "typical", "typical_p": 0.9},
    "custom, nothing on": {"strategy": "custom"},
    "custom, top_p 0.95": {"strategy": "custom", "top_p": 0.95},
    "custom, top_k 40, top_p 0.95, min_p 0.02": {"strategy": "custom"} | _COMBINED,
    "custom, these and three penalties": {"strategy": "custom", "repetition_penalty": 1.1}
    | _COMBINED
    | _PENALTIES,
    "custom, top-nσ 1, XTC": {"strategy": "custom", "top_n_sigma": 1.0, "xtc_probability": 0.5},
    "custom, DRY": {"strategy": "custom"} | _DRY,
    "custom, everything": {
        "strategy": "custom",
        "repetition_penalty": 1.1,
        "typical_p": 0.9,
        "top_n_sigma": 2.0,
        "xtc_probability": 0.5,
        "logit_bias": tuple((token, 0.5) for token in range(300)),
    }
    | _COMBINED
    | _PENALTIES
    | _DRY,
}


def measure(space: Workspace) -> Section:
    """Time one call of the sampler for each case, in turn.

    Raises:
        BenchmarkError: there is no compiler.
    """
    try:
        built = kernels(space.models / "kernels")
    except NoKernels as error:
        raise BenchmarkError(f"The kernels cannot be compiled: {error}") from error
    section = Section(
        "sampling",
        f"milliseconds of sampling a step of {ROWS} sequences",
        [
            f"a vocabulary of {VOCABULARY} tokens, {HISTORY} tokens of text, half of them new",
            f"{built.instruction_set}, {num_threads()} threads; {ROUNDS} rounds in turn",
        ],
    )
    sampler = KernelSampler(_kernel(built))
    random = np.random.default_rng(0)
    logits = (random.standard_normal((ROWS, VOCABULARY)) * 3).astype(np.float32)
    ids = random.integers(0, 400, HISTORY).tolist()
    batches = {name: _states(options, ids) for name, options in CASES.items()}
    mixed = [states[row] for row, states in enumerate(batches.values())]
    batches["all of these, mixed"] = (mixed * ROWS)[:ROWS]
    times: dict[str, list[float]] = {name: [] for name in batches}
    for _ in range(ROUNDS):
        for name, states in batches.items():
            start = time.perf_counter()
            sampler.sample(logits, states, str)
            times[name].append((time.perf_counter() - start) * 1000)
    for name, samples in times.items():
        section.add(name, "ms", samples)
    return section


class _NumberEncoder:
    def encode_part(self, text: str) -> list[int]:
        return [int(text[1:])]


def _states(options: dict[str, Any], ids: list[int]) -> list[SamplingState]:
    states = []
    for row in range(ROWS):
        own = DecodingParameters(max_new_tokens=HISTORY, seed=row, **options)
        rules = rules_for(own, _NumberEncoder(), VOCABULARY)
        states.append(SamplingState(own, ids, HISTORY // 2, rules))
    return states


def _kernel(built: Kernels) -> Callable[..., None]:
    """The kernels' sampler, of a decoder without weights."""
    sizes = {name: 1 for name, *_ in Spec._fields_}
    sizes |= {"capacity": 16, "vocabulary": VOCABULARY, "is_int8": 0}
    sizes["num_threads"] = num_threads()
    handle = ctypes.c_void_p()
    _require(built.library.textmill_new(ctypes.byref(Spec(**sizes)), ctypes.byref(handle)))

    def sample(logits: Any, parameters: bytes, tokens: Any, traces: Any) -> None:
        address = logits.ctypes.data
        arguments = handle, len(tokens), address, parameters, tokens, traces
        _require(built.library.textmill_sample(*arguments))

    return sample


def _require(status: int) -> None:
    if status != 0:
        raise BenchmarkError(f"The kernels returned the status {status}.")
