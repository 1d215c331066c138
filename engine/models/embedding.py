"""Token embeddings in the smallest form from which every row can be made again, bit for bit.

Weights in float32 were often converted from smaller numbers: from the blocks of a .gguf file, or
from bfloat16 or float16. A row is needed only when its token is looked up. So the numbers are kept
in the smaller form, but only if all of them come back with the same bits; otherwise in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.engine.models.checkpoint import float32_of_bfloat16
from textmill.engine.models.weights import Float32, Rows

# Rows are read in parts of this size, which fit into the processor's caches. A part's number of
# rows is a multiple of 32, so that the kernels can pack it.
_PART_BYTES = 2 << 20
_PART_MULTIPLE = 32
_BLOCK = 32  # numbers that share a scale in Q8_0, see docs/gguf.md of ggml
_LARGEST_INT8 = np.float32(127)
Parts = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class _Form:
    """A way to keep rows: parts with one entry for each row.

    ``encode`` may return parts that ``decode`` does not turn into the same rows; the caller checks.
    """

    name: str
    encode: Callable[[Float32], Parts]
    decode: Callable[..., Float32]


def _encode_blocks(rows: Float32) -> Parts:
    """Numbers of int8 and a float16 scale for each block, as in Q8_0: the largest number is 127."""
    blocks = rows.reshape(len(rows), -1, _BLOCK)
    scales = (np.abs(blocks).max(2) / _LARGEST_INT8).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide > 0)
    numbers = np.rint(blocks * inverse[..., None]).astype(np.int8)
    if (is_zero := wide == 0).any():  # 0 times a negative number is -0
        numbers[is_zero] = -np.signbit(blocks[is_zero]).astype(np.int8)
    return numbers, scales


def _decode_blocks(numbers: NDArray[np.int8], scales: NDArray[np.float16]) -> Float32:
    rows = numbers.astype(np.float32)
    rows *= scales.astype(np.float32)[..., None]
    return rows.reshape(len(numbers), -1)


def _encode_bfloat16(rows: Float32) -> Parts:
    return ((rows.view(np.uint32) >> 16).astype(np.uint16),)


def _encode_float16(rows: Float32) -> Parts:
    return (rows.astype(np.float16),)


def _decode_float16(numbers: NDArray[np.float16]) -> Float32:
    return numbers.astype(np.float32)


def _encode_float32(rows: Float32) -> Parts:
    return (rows,)


def _decode_float32(rows: Float32) -> Float32:
    return rows


_BLOCKS = _Form("blocks of int8", _encode_blocks, _decode_blocks)
_OTHERS = (
    _Form("bfloat16", _encode_bfloat16, float32_of_bfloat16),
    _Form("float16", _encode_float16, _decode_float16),
    _Form("float32", _encode_float32, _decode_float32),
)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Embedding:
    """A matrix (tokens, width) of float32 numbers, from which rows are looked up."""

    _form: _Form
    _parts: Parts

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self._parts[0])

    @property
    def form(self) -> str:
        """The name of the form in which the numbers are kept."""
        return self._form.name

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return sum(part.nbytes for part in self._parts)

    def rows(self, tokens: NDArray[np.int64]) -> Float32:
        """Look rows up: (tokens, width) float32, contiguous, new memory."""
        return self._form.decode(*(part[tokens] for part in self._parts))

    def is_same(self, other: Embedding) -> bool:
        """Whether both return the same bits for every token."""
        return self._form is other._form and all(
            own.shape == its.shape and np.array_equal(_bits(own), _bits(its))
            for own, its in zip(self._parts, other._parts, strict=True)
        )


def compact(numbers: Rows) -> Embedding:
    """Keep an embedding in the smallest form that is exact.

    Args:
        numbers: (tokens, width) float32; read in parts, once for each form that is tried.
    """
    forms = _OTHERS if numbers.shape[1] % _BLOCK else (_BLOCKS, *_OTHERS)
    found = (_kept(numbers, form) for form in forms)
    return next(embedding for embedding in found if embedding is not None)


def parts_of(numbers: Rows) -> Iterator[tuple[int, Float32]]:
    """Read rows part by part: the index of the first row, and (rows, width) float32."""
    num_rows, width = numbers.shape
    most = max(1, _PART_BYTES // (4 * width * _PART_MULTIPLE)) * _PART_MULTIPLE
    for start in range(0, num_rows, most):
        yield start, np.ascontiguousarray(numbers[start : start + most], np.float32)


def _kept(numbers: Rows, form: _Form) -> Embedding | None:
    """The numbers in a form; ``None`` if it is not exact."""
    kept: Parts = ()
    for start, rows in parts_of(numbers):
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and overflows are not the same
            parts = form.encode(rows)
            if form.name != "float32" and not np.array_equal(
                _bits(form.decode(*parts)), _bits(rows)
            ):
                return None
        if not kept:
            kept = tuple(np.empty((numbers.shape[0], *p.shape[1:]), p.dtype) for p in parts)
        for whole, part in zip(kept, parts, strict=True):
            whole[start : start + len(rows)] = part
    return Embedding(form, kept)


def _bits(numbers: NDArray[Any]) -> NDArray[Any]:
    """The numbers as integers: -0 is not 0, and NaN equals itself."""
    return numbers.view(f"u{numbers.itemsize}")
