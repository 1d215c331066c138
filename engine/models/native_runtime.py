"""The decoder's step on a CPU, by our own compiled kernels: exact sums, no neighbour's influence.

Computes what ``engine.models.decoder`` does, in float32 or in int8 (Dettmers et al., "LLM.int8()",
2022, without its outlier path): a weight has one scale an output, an activation one a row, sums are
exact integers. Every row's arithmetic is its own, whatever else is in the step, so chunks of
prompts may be cut anywhere and rows of any texts may share a step.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise

import torch
from torch import Tensor

from textmill.engine.kernels.status import Status, check_load, check_step
from textmill.engine.models.cache import SlotCache
from textmill.engine.models.decoder import (
    Affine,
    DecoderSpec,
    DecoderWeights,
    LayerWeights,
    rotary_tables,
)
from textmill.engine.models.errors import KernelRefusal

# Rows that the kernels' buffers hold: more are taken in several steps, whose time goes by rows
# anyway, and a row of SmolLM2 takes 25 KB.
MAX_STEP_ROWS = 512
DRAW_BYTES, TRACE_BYTES = 56, 256  # of Draw and Trace in kernels/sampler.h
_LANES = 16
_HEAD = -1
_ACTS = {"gelu": 1, "swiglu": 2}


class _Spec(ctypes.Structure):  # mirrors Spec in kernels/decoder.h
    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "inner", "vocabulary",
            "context", "num_slots", "capacity", "is_rms", "act", "is_int8", "is_cache_bfloat16",
            "num_threads", "max_rows",
        )),
        ("norm_eps", ctypes.c_float),
        ("score_scale", ctypes.c_float),
    ]  # fmt: skip


class NativeDecoder:
    """Computes logits for rows of tokens that stand in slots of the cache."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        num_slots: int,
        *,
        library: ctypes.CDLL,
        is_int8: bool,
        num_threads: int,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        """Pack the weights; of the embedding alone a copy is kept as it is given.

        Args:
            spec: what the decoder is made of.
            weights: gone through once.
            num_slots: texts that the cache holds.
            library: the compiled kernels.
            is_int8: whether weights are rounded, and activations before products.
            num_threads: threads of a step.
            cache_dtype: of keys and values; float32, or bfloat16 (the default with int8).

        Raises:
            ModelUnusable: memory is short, or the weights do not have the spec's shapes.
        """
        if cache_dtype is None:
            cache_dtype = torch.bfloat16 if is_int8 else torch.float32
        self.spec = spec
        self._library = library
        self._num_slots = num_slots
        self._logits: Tensor | None = None
        self.cache = SlotCache(
            num_layers=spec.num_layers,
            num_slots=num_slots,
            num_kv_heads=spec.num_kv_heads,
            head_dim=-(-spec.head_dim // _LANES) * _LANES,
            context_length=spec.context_length,
            dtype=cache_dtype,
            key_block=_LANES,
        )
        with _short_memory_told():
            self._take(weights, is_int8, num_threads)

    def _take(self, weights: DecoderWeights, is_int8: bool, num_threads: int) -> None:
        spec, library = self.spec, self._library
        # Copies: one view into the file's mapping would keep all that was read of it in memory.
        self._embedding = weights.embedding.clone()
        table = weights.position_embedding
        self._position_embedding = None if table is None else table.clone()
        layers = iter(weights.layers)
        first = next(layers)
        inner = first.down[0].shape[1]
        given = _Spec(
            spec.num_layers, spec.width, spec.num_heads, spec.num_kv_heads, spec.head_dim, inner,
            spec.vocabulary_size, spec.context_length, self._num_slots, self.cache.capacity,
            spec.norm == "rms", _ACTS[spec.feed_forward], is_int8,
            self.cache.keys.dtype == torch.bfloat16, num_threads, MAX_STEP_ROWS, spec.norm_eps,
            spec.score_scale,
        )  # fmt: skip
        self._handle = ctypes.c_void_p()
        check_load(library.textmill_new(ctypes.byref(given), ctypes.byref(self._handle)))
        weakref.finalize(self, library.textmill_free, self._handle)
        self._tables = rotary_tables(spec, spec.rope) if spec.rope is not None else None
        self.num_parameters = weights.num_outer_parameters()
        self._take_layers(chain([first], layers))
        self._take_rest(weights)
        nothing = (0, None, None, None, 0, None, None)
        check_load(library.textmill_forward(self._handle, *nothing))  # whether all was given

    def _take_layers(self, layers: Iterable[LayerWeights]) -> None:
        handle, library = self._handle, self._library
        for index, layer in enumerate(layers):
            self.num_parameters += layer.num_parameters()
            for part, product in enumerate((layer.qkv, layer.out, layer.up, layer.down)):
                self._take_product(index, part, product)
            for place, norm in enumerate((layer.norm1, layer.norm2)):
                self._take_norm(index, place, norm)
            keys, values = self.cache.keys[index], self.cache.values[index]
            window = self.spec.windows[index] or 0
            check_load(
                library.textmill_set_layer(
                    handle, index, keys.data_ptr(), values.data_ptr(), keys.numel(), window
                )
            )

    def _take_rest(self, weights: DecoderWeights) -> None:
        self._take_norm(_HEAD, 0, weights.final_norm)
        self._take_product(_HEAD, 0, weights.head)
        if self._tables is not None:
            cos, sin = self._tables
            check_load(
                self._library.textmill_set_rotation(
                    self._handle, cos.data_ptr(), sin.data_ptr(), *cos.shape
                )
            )

    def _take_product(self, layer: int, part: int, product: Affine) -> None:
        weight, bias = _float32(product[0], 2), _float32(product[1], 1)
        code = self._library.textmill_set_product(
            self._handle, layer, part, *_given(weight, 2), *_given(bias, 1)
        )
        check_load(code)

    def _take_norm(self, layer: int, place: int, norm: Affine) -> None:
        weight, bias = _float32(norm[0], 1), _float32(norm[1], 1)
        code = self._library.textmill_set_norm(
            self._handle, layer, place, *_given(weight, 1), *_given(bias, 1)
        )
        check_load(code)

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:
        """A step of any number of rows; more than ``MAX_STEP_ROWS`` are taken in several.

        Args:
            tokens: one a row.
            positions: the token's place in its text.
            slots: where the text stands in the cache; rows of one slot in the order of positions.
            wanted: the rows after which logits are wanted, ascending.

        Returns:
            (len(wanted), vocabulary) float32; as many rows as there are slots are overwritten by
            the next step.

        Raises:
            KernelRefusal: a token, position, slot or wanted row does not exist, or memory is short.
        """
        logits = self._room(len(wanted))
        starts = range(0, len(tokens), MAX_STEP_ROWS)
        done = 0
        for start, end in pairwise([*starts, len(tokens)]):
            part = wanted if len(starts) == 1 else [w - start for w in wanted[done:] if w < end]
            self._compute(
                tokens[start:end], positions[start:end], slots[start:end], part, logits[done:]
            )
            done += len(part)
        if done < len(wanted):
            raise KernelRefusal("Logits are wanted of a row that the step does not have.")
        return logits

    def _compute(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        wanted: Sequence[int],
        logits: Tensor,
    ) -> None:
        hidden = self._hidden(tokens, positions)
        code = self._library.textmill_forward(
            self._handle,
            len(tokens),
            hidden.data_ptr(),
            (ctypes.c_int32 * len(tokens))(*positions),
            (ctypes.c_int32 * len(tokens))(*slots),
            len(wanted),
            (ctypes.c_int32 * len(wanted))(*wanted),
            logits.data_ptr(),
        )
        check_step(code)

    def _hidden(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """The rows' embeddings, (rows, width) float32 without gaps."""
        if min(tokens) < 0 or max(tokens) >= len(self._embedding):  # -1 would be the last one
            check_step(Status.BAD_TOKEN)
        hidden = self._embedding[torch.tensor(tokens)].float()
        if self._position_embedding is not None:
            if min(positions) < 0 or max(positions) >= len(self._position_embedding):
                check_step(Status.BAD_POSITION)
            hidden = hidden + self._position_embedding[torch.tensor(positions)].float()
        return hidden.contiguous()

    def _room(self, num_rows: int) -> Tensor:
        """Memory for logits; a page of fresh memory takes longer than to compute what it holds."""
        if num_rows > self._num_slots:
            return torch.empty(num_rows, self.spec.vocabulary_size)
        if self._logits is None or len(self._logits) < num_rows:
            self._logits = torch.empty(num_rows, self.spec.vocabulary_size)
        return self._logits[:num_rows]

    def choose(
        self,
        logits: Tensor,
        draws: bytes,
        tokens: ctypes.Array[ctypes.c_int32],
        traces: ctypes.Array[ctypes.c_char] | None,
    ) -> None:
        """Choose a token a row.

        Args:
            logits: (rows, vocabulary) float32.
            draws: a ``Draw`` a row.
            tokens: room for one a row; -1 is written where no token can be chosen.
            traces: room for a ``Trace`` a row, or ``None`` where no row asks for one.

        Raises:
            KernelRefusal: a parameter is outside of its range, or memory is short.
        """
        num_rows = len(tokens)
        is_whole = logits.shape == (num_rows, self.spec.vocabulary_size)
        if not (is_whole and logits.dtype == torch.float32 and logits.is_contiguous()):
            check_step(Status.BAD_SHAPE)
        has_room = traces is None or len(traces) >= num_rows * TRACE_BYTES
        if len(draws) != num_rows * DRAW_BYTES or not has_room:
            check_step(Status.BAD_COUNT)
        check_step(
            self._library.textmill_choose(
                self._handle, num_rows, logits.data_ptr(), draws, tokens, traces
            )
        )

    def seconds(self) -> dict[str, float]:
        """Time spent since the start, by what it went into."""
        spent = (ctypes.c_double * 4)()
        check_step(self._library.textmill_seconds(self._handle, spent))
        return dict(zip(("products", "attention", "other", "head"), spent, strict=True))


@contextmanager
def _short_memory_told() -> Iterator[None]:
    """PyTorch's error for memory that it does not get is a plain RuntimeError."""
    try:
        yield
    except MemoryError:
        check_load(Status.NO_MEMORY)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        check_load(Status.NO_MEMORY)


def _float32(tensor: Tensor | None, num_dimensions: int) -> Tensor | None:
    if tensor is not None and tensor.dim() != num_dimensions:
        check_load(Status.BAD_SHAPE)
    return None if tensor is None else tensor.float().contiguous()


def _given(tensor: Tensor | None, num_dimensions: int) -> tuple[int | None, *tuple[int, ...]]:
    """A tensor as the kernels take it: its address and its shape."""
    return (None, *[0] * num_dimensions) if tensor is None else (tensor.data_ptr(), *tensor.shape)
