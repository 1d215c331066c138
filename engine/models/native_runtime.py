"""The decoder's step on a CPU, by the compiled kernels.

Computes the same as ``engine.models.decoder``, in float32 or in int8 (Dettmers et al.,
"LLM.int8()", 2022, without its outlier path): each output of a weight has one scale, each token's
activations have one, and sums are exact integers. The arithmetic of one token does not depend on
the rest of the step, so prompts may be cut anywhere and tokens of any sequences may share a step.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.engine.kernels.interface import SAMPLING_PARAMETERS, TRACE, Spec
from textmill.engine.kernels.status import Status, check_load, check_step
from textmill.engine.models.cache import SlotCache
from textmill.engine.models.embedding import Embedding, compact, parts_of
from textmill.engine.models.errors import KernelRefusal
from textmill.engine.models.rotary import rotary_tables
from textmill.engine.models.weights import (
    Affine,
    DecoderSpec,
    DecoderWeights,
    Float32,
    LayerWeights,
    Rows,
)

# The capacity of the kernels' buffers. More tokens are computed in several steps, which takes no
# longer, since time is proportional to tokens. A token of SmolLM2 takes 25 KB.
MAX_STEP_TOKENS = 512
_LANES = 16
_SCALE_BYTES = 4  # a float32 for each position of a head
_MAX_INT8_HEAD_DIM = 512
_HEAD = -1
_ACTIVATIONS = {"gelu": 1, "swiglu": 2}


class NativeDecoder:
    """Computes logits for tokens of sequences that have slots in the cache."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights[Rows],
        num_slots: int,
        *,
        library: ctypes.CDLL,
        is_int8: bool,
        num_threads: int,
        is_cache_int8: bool | None = None,
        share: Callable[[Embedding], Embedding] = lambda own: own,
    ) -> None:
        """Pack the weights, layer by layer. The embedding itself is kept too, see ``compact``.

        Args:
            spec: the decoder's sizes and constants.
            weights: their layers are iterated once.
            num_slots: sequences that the cache holds.
            library: the compiled kernels.
            is_int8: whether weights, and activations before products, are rounded to int8.
            num_threads: threads that compute a step.
            is_cache_int8: whether keys and values are rounded to int8 rather than kept in float32;
                by default if ``is_int8``.
            share: returns the same embedding of another decoder, if there is one.

        Raises:
            ModelUnusable: out of memory, or the weights do not have the spec's shapes.
        """
        if is_cache_int8 is None:
            is_cache_int8 = is_int8 and spec.head_dim <= _MAX_INT8_HEAD_DIM
        self.spec = spec
        self._library = library
        self._num_slots = num_slots
        self._logits: Float32 | None = None
        self.cache = SlotCache(
            num_layers=spec.num_layers,
            num_slots=num_slots,
            num_kv_heads=spec.num_kv_heads,
            head_dim=-(-spec.head_dim // _LANES) * _LANES + (_SCALE_BYTES if is_cache_int8 else 0),
            context_length=spec.context_length,
            number_bytes=1 if is_cache_int8 else 4,
            block_tokens=_LANES,
        )
        # Half of packing is one thread's work; meanwhile another one reads the embedding.
        with _memory_errors(), ThreadPoolExecutor(1) as other_thread:
            embedding = other_thread.submit(compact, weights.embedding)
            self._load(weights, is_int8, num_threads)
            self._embedding = share(embedding.result())

    def _load(self, weights: DecoderWeights[Rows], is_int8: bool, num_threads: int) -> None:
        spec, library = self.spec, self._library
        table = weights.position_embedding
        self._position_embedding = None if table is None else np.asarray(table, np.float32)
        layers = iter(weights.layers)
        first = next(layers)
        sizes = self._sizes(first.down[0].shape[1], is_int8, num_threads)
        self._handle = ctypes.c_void_p()
        check_load(library.textmill_new(ctypes.byref(sizes), ctypes.byref(self._handle)))
        weakref.finalize(self, library.textmill_free, self._handle)
        self._tables = (
            rotary_tables(spec.rope, spec.context_length, spec.head_dim) if spec.rope else None
        )
        self.num_parameters = weights.num_outer_parameters()
        self._pack_layers(chain([first], layers))
        self._pack_norm(_HEAD, 0, weights.final_norm)
        self._pack_head(weights.head)
        self._set_rotary()
        empty_step = (0, None, None, None, 0, None, None)
        check_load(
            library.textmill_forward(self._handle, *empty_step)
        )  # fails if weights are missing

    def _sizes(self, inner: int, is_int8: bool, num_threads: int) -> Spec:
        spec = self.spec
        return Spec(
            spec.num_layers, spec.width, spec.num_heads, spec.num_kv_heads, spec.head_dim, inner,
            spec.vocabulary_size, spec.context_length, self._num_slots, self.cache.capacity,
            spec.norm == "rms", _ACTIVATIONS[spec.feed_forward], is_int8,
            self.cache.is_int8, num_threads, MAX_STEP_TOKENS, spec.norm_eps,
            spec.score_scale,
        )  # fmt: skip

    def _pack_layers(self, layers: Iterable[LayerWeights[Rows]]) -> None:
        for index, layer in enumerate(layers):
            self.num_parameters += layer.num_parameters()
            for part, linear in enumerate((layer.qkv, layer.out, layer.up, layer.down)):
                self._pack_linear(index, part, linear)
            for place, norm in enumerate((layer.norm1, layer.norm2)):
                self._pack_norm(index, place, norm)
            keys, values = self.cache.keys[index], self.cache.values[index]
            window = self.spec.windows[index] or 0
            addresses = keys.ctypes.data, values.ctypes.data
            check_load(
                self._library.textmill_set_cache(self._handle, index, *addresses, keys.size, window)
            )

    def _pack_head(self, head: Affine[Rows]) -> None:
        """Pack the head by parts: as a whole it may be the largest tensor."""
        weight, bias = head
        if bias is not None:
            self._pack_linear(_HEAD, 0, head)
            return
        for first, rows in parts_of(weight):
            code = self._library.textmill_set_outputs(
                self._handle, _HEAD, 0, first, rows.ctypes.data, *rows.shape
            )
            check_load(code)

    def _pack_linear(self, layer: int, part: int, linear: Affine[Rows]) -> None:
        weight, bias = _float32(linear[0], 2), _float32(linear[1], 1)
        code = self._library.textmill_set_linear(
            self._handle, layer, part, *_arguments(weight, 2), *_arguments(bias, 1)
        )
        check_load(code)

    def _pack_norm(self, layer: int, place: int, norm: Affine[Rows]) -> None:
        weight, bias = _float32(norm[0], 1), _float32(norm[1], 1)
        code = self._library.textmill_set_norm(
            self._handle, layer, place, *_arguments(weight, 1), *_arguments(bias, 1)
        )
        check_load(code)

    def _set_rotary(self) -> None:
        if self._tables is not None:
            cos, sin = self._tables
            addresses = cos.ctypes.data, sin.ctypes.data
            check_load(self._library.textmill_set_rotary(self._handle, *addresses, *cos.shape))

    def forward(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        wanted: Sequence[int],
    ) -> Float32:
        """Compute any number of tokens; more than ``MAX_STEP_TOKENS`` take several steps.

        Args:
            tokens: their ids.
            positions: each token's position in its sequence.
            slots: each token's slot; the tokens of a slot are in the order of their positions.
            wanted: indices of the tokens after which logits are wanted, ascending.

        Returns:
            (len(wanted), vocabulary) float32. The next call overwrites it, unless it has more rows
            than there are slots.

        Raises:
            KernelRefusal: a token, position, slot or wanted index does not exist, or out of memory.
        """
        logits = self._logits_buffer(len(wanted))
        starts = range(0, len(tokens), MAX_STEP_TOKENS)
        done = 0
        for start, end in pairwise([*starts, len(tokens)]):
            part = wanted if len(starts) == 1 else [w - start for w in wanted[done:] if w < end]
            self._step(
                tokens[start:end], positions[start:end], slots[start:end], part, logits[done:]
            )
            done += len(part)
        if done < len(wanted):
            raise KernelRefusal("Logits are wanted for a token that the step does not contain.")
        return logits

    def _step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        wanted: Sequence[int],
        logits: Float32,
    ) -> None:
        hidden = self._embed(tokens, positions)
        code = self._library.textmill_forward(
            self._handle,
            len(tokens),
            hidden.ctypes.data,
            (ctypes.c_int32 * len(tokens))(*positions),
            (ctypes.c_int32 * len(tokens))(*slots),
            len(wanted),
            (ctypes.c_int32 * len(wanted))(*wanted),
            logits.ctypes.data,
        )
        check_step(code)

    def _embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Float32:
        """The tokens' embeddings, (tokens, width) float32, contiguous."""
        if min(tokens) < 0 or max(tokens) >= len(self._embedding):  # -1 would be the last token
            check_step(Status.BAD_TOKEN)
        hidden = self._embedding.rows(np.array(tokens))
        if self._position_embedding is not None:
            if min(positions) < 0 or max(positions) >= len(self._position_embedding):
                check_step(Status.BAD_POSITION)
            hidden = hidden + self._position_embedding[np.array(positions)]
        return hidden

    def _logits_buffer(self, num_rows: int) -> Float32:
        """Memory that is reused: to get a page from the system takes longer than to fill it."""
        if num_rows > self._num_slots:
            return np.empty((num_rows, self.spec.vocabulary_size), np.float32)
        if self._logits is None or len(self._logits) < num_rows:
            self._logits = np.empty((num_rows, self.spec.vocabulary_size), np.float32)
        return self._logits[:num_rows]

    def sample(
        self,
        logits: Float32,
        parameters: bytes,
        tokens: ctypes.Array[ctypes.c_int32],
        traces: ctypes.Array[ctypes.c_char] | None,
    ) -> None:
        """Sample a token for each row of logits.

        Args:
            logits: (rows, vocabulary) float32.
            parameters: a ``SamplingParameters`` for each row.
            tokens: receives the tokens; -1 where none can be sampled.
            traces: receives a ``Trace`` for each row that asks for one, or ``None``.

        Raises:
            KernelRefusal: a parameter is outside of its range, or out of memory.
        """
        num_rows = len(tokens)
        self._check_logits(logits, num_rows)
        has_room = traces is None or len(traces) >= num_rows * TRACE.size
        if len(parameters) != num_rows * SAMPLING_PARAMETERS.size or not has_room:
            check_step(Status.BAD_COUNT)
        check_step(
            self._library.textmill_sample(
                self._handle, num_rows, logits.ctypes.data, parameters, tokens, traces
            )
        )

    def log_softmax(self, logits: Float32) -> Float32:
        """The logarithms of the probabilities, (rows, vocabulary) float32, of such logits.

        Raises:
            KernelRefusal: the logits do not have that shape and type, or out of memory.
        """
        self._check_logits(logits, len(logits))
        result = np.empty_like(logits)
        addresses = logits.ctypes.data, result.ctypes.data
        check_step(self._library.textmill_log_softmax(self._handle, len(logits), *addresses))
        return result

    def _check_logits(self, logits: NDArray[Any], num_rows: int) -> None:
        """Check what the kernels read without knowing its size."""
        is_whole = logits.shape == (num_rows, self.spec.vocabulary_size)
        if not (is_whole and logits.dtype == np.float32 and logits.flags.c_contiguous):
            check_step(Status.BAD_SHAPE)

    def seconds(self) -> dict[str, float]:
        """Seconds spent since the start, by phase of a step."""
        spent = (ctypes.c_double * 4)()
        check_step(self._library.textmill_seconds(self._handle, spent))
        return dict(zip(("products", "attention", "other", "head"), spent, strict=True))


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn NumPy's error into ``ModelUnusable``."""
    try:
        yield
    except MemoryError:
        check_load(Status.NO_MEMORY)


def _float32(array: Rows | None, num_dimensions: int) -> Float32 | None:
    if array is not None and len(array.shape) != num_dimensions:
        check_load(Status.BAD_SHAPE)
    return None if array is None else np.ascontiguousarray(array, np.float32)


def _arguments(array: Float32 | None, num_dimensions: int) -> tuple[int | None, *tuple[int, ...]]:
    """An array's address and shape."""
    return (None, *[0] * num_dimensions) if array is None else (array.ctypes.data, *array.shape)
