"""Choosing by the compiled kernels: all rows, strategies and traces of a step in one call.

What is computed is said in ``engine.sampling.torch_sampler``, which does it in PyTorch.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import overload

from torch import Tensor

from textmill.engine.sampling.sampler import Chosen
from textmill.engine.sampling.token_records import (
    NUM_ALTERNATIVES,
    Alternative,
    SamplingState,
    TokenTrace,
)
from textmill.engine.sampling.torch_sampler import is_greedy
from textmill.engine.sampling.uniform import uniform

# (logits, draws, tokens, traces); see ``NativeDecoder.choose``.
Choose = Callable[
    [Tensor, bytes, ctypes.Array[ctypes.c_int32], "ctypes.Array[ctypes.c_char] | None"], None
]
_KINDS = {"sampling": 1, "top_k": 2, "top_p": 3, "min_p": 4, "typical": 5}
_GREEDY = 0
# Mirrors Draw and Trace in engine/kernels/sampler.h.
_DRAW = struct.Struct("<iiiiQfff4xdd")
_HEAD = struct.Struct("<ifff")
_TRACE = struct.Struct(f"<ifff{NUM_ALTERNATIVES}i{NUM_ALTERNATIVES}f{NUM_ALTERNATIVES}f")
_FIRST_ALTERNATIVE = 4
_COLUMNS = (0, NUM_ALTERNATIVES, 2 * NUM_ALTERNATIVES)  # ids, logprobs, probabilities


class KernelChooser:
    """Chooses for the rows of one model."""

    def __init__(self, choose: Choose) -> None:
        """Keep the kernel."""
        self._choose = choose

    def choose(
        self, logits: Tensor, rows: Sequence[SamplingState], text_of: Callable[[int], str]
    ) -> list[Chosen]:
        """A token a row.

        Args:
            logits: (rows, vocabulary) float32, contiguous.
            rows: the rows' parameters and texts, in the same order.
            text_of: a token's text, for traces.
        """
        seen = [_seen(row) for row in rows]  # kept until the kernel has read them
        draws = b"".join(_draw(row, ids) for row, ids in zip(rows, seen, strict=True))
        tokens = (ctypes.c_int32 * len(rows))()
        has_traces = any(row.parameters.trace for row in rows)
        traces = ctypes.create_string_buffer(_TRACE.size * len(rows)) if has_traces else None
        self._choose(logits, draws, tokens, traces)
        written = traces.raw if traces is not None else b""
        chosen = []
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            trace = None
            if token >= 0 and row.parameters.trace:
                start = index * _TRACE.size
                trace = _trace(token, written[start : start + _TRACE.size], text_of)
            chosen.append(Chosen(token if token >= 0 else None, trace))
        return chosen


def _seen(row: SamplingState) -> array[int]:
    return array("i", row.ids if row.parameters.repetition_penalty != 1.0 else ())


def _draw(row: SamplingState, seen: array[int]) -> bytes:
    parameters = row.parameters
    is_certain = is_greedy(parameters)
    return _DRAW.pack(
        _GREEDY if is_certain else _KINDS[parameters.strategy],
        min(parameters.top_k, 2**31 - 1),
        len(seen),
        parameters.trace,
        seen.buffer_info()[0] if seen else 0,
        parameters.temperature,
        parameters.repetition_penalty,
        parameters.min_p,
        0.0 if is_certain else uniform(parameters.seed, row.position),
        parameters.typical_p if parameters.strategy == "typical" else parameters.top_p,
    )


class Alternatives(Sequence[Alternative]):
    """A trace's alternatives, made when they are first looked at: after the text, not within it."""

    def __init__(self, numbers: bytes, text_of: Callable[[int], str]) -> None:
        """Keep a ``Trace`` as the kernel wrote it."""
        self._numbers = numbers
        self._text_of = text_of
        self._made: list[Alternative] | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Alternative: ...
    @overload
    def __getitem__(self, index: slice) -> list[Alternative]: ...
    def __getitem__(self, index: int | slice) -> Alternative | list[Alternative]:
        """The likeliest first."""
        return self._all()[index]

    def _all(self) -> list[Alternative]:
        if self._made is None:
            numbers = _TRACE.unpack(self._numbers)[_FIRST_ALTERNATIVE:]
            ids, logprobs, shares = (numbers[i : i + NUM_ALTERNATIVES] for i in _COLUMNS)
            self._made = [
                Alternative(token, self._text_of(token), logprob, share)
                for token, logprob, share in zip(ids, logprobs, shares, strict=True)
                if token >= 0
            ]
        return self._made


def _trace(token: int, numbers: bytes, text_of: Callable[[int], str]) -> TokenTrace:
    rank, logprob, probability, entropy = _HEAD.unpack_from(numbers)
    return TokenTrace(
        id=token,
        text=text_of(token),
        logprob=logprob,
        rank=rank,
        probability=probability,
        entropy=entropy,
        alternatives=Alternatives(numbers, text_of),
    )
