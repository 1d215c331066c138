"""Sampling by the compiled kernels: all rows, strategies and traces of a step in one call.

``engine.sampling.torch_sampler`` computes the same in PyTorch.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from textmill.core.strategies import DecodingParameters
from textmill.engine.kernels.interface import SAMPLING_PARAMETERS, TRACE
from textmill.engine.sampling.custom_parameters import CustomRows, needs_ids
from textmill.engine.sampling.filter_table import is_greedy, kernel_code
from textmill.engine.sampling.sampler import SampledToken
from textmill.engine.sampling.token_records import (
    NUM_ALTERNATIVES,
    Alternative,
    SamplingState,
    TokenTrace,
)
from textmill.engine.sampling.uniform import uniform

Float32 = NDArray[np.float32]
# (logits, parameters, tokens, traces); see ``NativeDecoder.sample``.
SampleKernel = Callable[
    [Float32, bytes, ctypes.Array[ctypes.c_int32], "ctypes.Array[ctypes.c_char] | None"], None
]
_TRACED = DecodingParameters(strategy="greedy", max_new_tokens=1, seed=0, trace=True)
_TRACE_HEAD = struct.Struct("<ifff")
_FIRST_ALTERNATIVE = 4
_COLUMNS = (0, NUM_ALTERNATIVES, 2 * NUM_ALTERNATIVES)  # ids, logprobs, probabilities


class KernelSampler:
    """Samples the tokens of one model."""

    def __init__(self, kernel: SampleKernel) -> None:
        self._kernel = kernel

    def sample(
        self, logits: Float32, states: Sequence[SamplingState], text_of: Callable[[int], str]
    ) -> list[SampledToken]:
        """Sample one token for each row of logits.

        Args:
            logits: (rows, vocabulary) float32, contiguous.
            states: the state of each row.
            text_of: returns a token's text, for traces.
        """
        # Both are referenced until the kernel has read them.
        seen = [array("i", state.ids if needs_ids(state.parameters) else ()) for state in states]
        custom = CustomRows(states)
        packed = b"".join(
            _packed(state, ids, address)
            for state, ids, address in zip(states, seen, custom.addresses, strict=True)
        )
        tokens = (ctypes.c_int32 * len(states))()
        has_traces = any(state.parameters.trace for state in states)
        traces = ctypes.create_string_buffer(TRACE.size * len(states)) if has_traces else None
        self._kernel(logits, packed, tokens, traces)
        written = traces.raw if traces is not None else b""
        sampled = []
        for index, (state, token) in enumerate(zip(states, tokens, strict=True)):
            trace = None
            if token >= 0 and state.parameters.trace:
                start = index * TRACE.size
                trace = _trace(token, written[start : start + TRACE.size], text_of)
            sampled.append(SampledToken(token if token >= 0 else None, trace))
        return sampled

    def are_finite(self, logits: Float32) -> bool:
        """Whether a token can be chosen from each row: no NaN, and a finite maximum."""
        return bool(np.isfinite(logits.max(-1)).all())  # the maximum with a NaN is NaN

    def trace(
        self, logits: Float32, tokens: Sequence[int], text_of: Callable[[int], str]
    ) -> list[TokenTrace]:
        """Trace the given token of each row of logits (rows, vocabulary) as a certain choice."""
        states = [SamplingState(_TRACED, [], 0)] * len(tokens)
        likeliest = self.sample(np.ascontiguousarray(logits), states, text_of)
        return [
            _of_another_token(sampled.trace, row, token, text_of)
            for sampled, row, token in zip(likeliest, logits, tokens, strict=True)
            if sampled.trace is not None
        ]


def _of_another_token(
    trace: TokenTrace, logits: Float32, token: int, text_of: Callable[[int], str]
) -> TokenTrace:
    """The trace of a given token, from that of the likeliest one, whose rank is 1."""
    value = logits[token]
    num_above = int((logits > value).sum()) + int((logits[:token] == value).sum())
    return replace(
        trace,
        id=token,
        text=text_of(token),
        logprob=trace.logprob + float(value - logits.max()),
        rank=num_above + 1,
        alternatives=[
            replace(other, probability=float(other.id == token)) for other in trace.alternatives
        ],
    )


def _packed(state: SamplingState, seen: array[int], custom_address: int) -> bytes:
    """The state as a ``SamplingParameters``; ``seen`` has the tokens that penalties apply to."""
    parameters = state.parameters
    return SAMPLING_PARAMETERS.pack(
        kernel_code(parameters),
        min(parameters.top_k, 2**31 - 1),
        len(seen),
        parameters.trace,
        seen.buffer_info()[0] if seen else 0,
        parameters.temperature,
        parameters.repetition_penalty,
        parameters.min_p,
        0.0 if is_greedy(parameters) else uniform(parameters.seed, state.position),
        parameters.typical_p if parameters.strategy == "typical" else parameters.top_p,
        custom_address,
    )


class LazyAlternatives(Sequence[Alternative]):
    """A trace's alternatives, decoded on first access: not while the engine's thread steps."""

    def __init__(self, packed: bytes, text_of: Callable[[int], str]) -> None:
        """Keep a ``Trace`` as the kernel wrote it."""
        self._packed = packed
        self._text_of = text_of
        self._decoded: list[Alternative] | None = None

    def __len__(self) -> int:
        """The number of alternatives."""
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Alternative: ...
    @overload
    def __getitem__(self, index: slice) -> list[Alternative]: ...
    def __getitem__(self, index: int | slice) -> Alternative | list[Alternative]:
        """An alternative, or several; the likeliest is first."""
        return self._all()[index]

    def _all(self) -> list[Alternative]:
        if self._decoded is None:
            numbers = TRACE.unpack(self._packed)[_FIRST_ALTERNATIVE:]
            ids, logprobs, probabilities = (numbers[i : i + NUM_ALTERNATIVES] for i in _COLUMNS)
            self._decoded = [
                Alternative(token, self._text_of(token), logprob, probability)
                for token, logprob, probability in zip(ids, logprobs, probabilities, strict=True)
                if token >= 0
            ]
        return self._decoded


def _trace(token: int, packed: bytes, text_of: Callable[[int], str]) -> TokenTrace:
    rank, logprob, probability, entropy = _TRACE_HEAD.unpack_from(packed)
    return TokenTrace(
        id=token,
        text=text_of(token),
        logprob=logprob,
        rank=rank,
        probability=probability,
        entropy=entropy,
        alternatives=LazyAlternatives(packed, text_of),
    )
