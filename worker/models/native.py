"""The decoder's step on a CPU, by our own compiled kernels: exact sums, no neighbour's influence.

Computes what ``worker.models.decoder`` does, in float32 or in int8 (Dettmers et al., "LLM.int8()",
2022, without its outlier path): a weight has one scale an output, an activation one a row, sums are
exact integers. Every row's arithmetic is its own, whatever else is in the step, so chunks of
prompts may be cut anywhere and rows of any texts may share a step.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from worker.models.cache import SlotCache
from worker.models.decoder import (
    Affine,
    DecoderSpec,
    DecoderWeights,
    LayerWeights,
    rotary_tables,
)
from worker.models.errors import ModelUnusable

MAX_STEP_ROWS = 512  # more are taken in several steps
_LANES = 16
_HEAD = -1
_ACTS = {"gelu": 1, "swiglu": 2}


class _Spec(ctypes.Structure):  # mirrors Spec in kernels/decoder.h
    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "inner", "vocabulary",
            "capacity", "is_rms", "act", "is_int8", "is_cache_bfloat16", "num_threads", "max_rows",
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
            ModelUnusable: memory is short.
        """
        if cache_dtype is None:
            cache_dtype = torch.bfloat16 if is_int8 else torch.float32
        self.spec = spec
        self._library = library
        self._num_slots = num_slots
        self._logits: Tensor | None = None
        # Copies: one view into the file's mapping would keep all that was read of it in memory.
        self._embedding = weights.embedding.clone()
        table = weights.position_embedding
        self._position_embedding = None if table is None else table.clone()
        self.cache = SlotCache(
            num_layers=spec.num_layers,
            num_slots=num_slots,
            num_kv_heads=spec.num_kv_heads,
            head_dim=-(-spec.head_dim // _LANES) * _LANES,
            context_length=spec.context_length,
            dtype=cache_dtype,
            key_block=_LANES,
        )
        layers = iter(weights.layers)
        first = next(layers)
        inner = first.down[0].shape[1]
        given = _Spec(
            spec.num_layers, spec.width, spec.num_heads, spec.num_kv_heads, spec.head_dim, inner,
            spec.vocabulary_size, self.cache.capacity, spec.norm == "rms", _ACTS[spec.feed_forward],
            is_int8, cache_dtype == torch.bfloat16, num_threads, MAX_STEP_ROWS,
            spec.norm_eps, spec.score_scale,
        )  # fmt: skip
        self._handle = library.textmill_new(ctypes.byref(given))
        if not self._handle:
            raise ModelUnusable("There is not memory enough for the model's weights.")
        weakref.finalize(self, library.textmill_free, self._handle)
        self._tables = rotary_tables(spec, spec.rope) if spec.rope is not None else None
        self.num_parameters = weights.num_outer_parameters()
        self._take_layers(chain([first], layers))
        self._take_rest(weights)

    def _take_layers(self, layers: Iterable[LayerWeights]) -> None:
        handle, library = self._handle, self._library
        for index, layer in enumerate(layers):
            self.num_parameters += layer.num_parameters()
            for part, product in enumerate((layer.qkv, layer.out, layer.up, layer.down)):
                self._take_product(index, part, product)
            norms = [_float32(t) for t in (*layer.norm1, *layer.norm2)]
            library.textmill_set_norms(handle, index, *map(_address, norms))
            keys, values = self.cache.keys[index], self.cache.values[index]
            window = self.spec.windows[index] or 0
            library.textmill_set_layer(handle, index, _address(keys), _address(values), window)

    def _take_rest(self, weights: DecoderWeights) -> None:
        handle, library = self._handle, self._library
        norms = [_float32(t) for t in weights.final_norm]
        library.textmill_set_norms(handle, _HEAD, *map(_address, norms), None, None)
        self._take_product(_HEAD, 0, weights.head)
        if self._tables is not None:
            library.textmill_set_rotation(handle, *map(_address, self._tables))

    def _take_product(self, layer: int, part: int, product: Affine) -> None:
        weight, bias = (_float32(t) for t in product)
        self._library.textmill_set_product(
            self._handle, layer, part, _address(weight), _address(bias)
        )

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:
        """One step of at most ``MAX_STEP_ROWS`` rows.

        Args:
            tokens: one a row.
            positions: the token's place in its text.
            slots: where the text stands in the cache; rows of one slot in the order of positions.
            wanted: the rows after which logits are wanted.

        Returns:
            (len(wanted), vocabulary) float32; as many rows as there are slots are overwritten by
            the next step.
        """
        hidden = self._embedding[torch.tensor(tokens)].float()
        if self._position_embedding is not None:
            hidden = hidden + self._position_embedding[torch.tensor(positions)].float()
        logits = self._room(len(wanted))
        self._library.textmill_forward(
            self._handle,
            len(tokens),
            _address(hidden.contiguous()),
            (ctypes.c_int32 * len(positions))(*positions),
            (ctypes.c_int32 * len(slots))(*slots),
            len(wanted),
            (ctypes.c_int32 * len(wanted))(*wanted),
            _address(logits),
        )
        return logits

    def _room(self, num_rows: int) -> Tensor:
        """Memory for logits; a page of fresh memory takes longer than to compute what it holds."""
        if num_rows > self._num_slots:
            return torch.empty(num_rows, self.spec.vocabulary_size)
        if self._logits is None or len(self._logits) < num_rows:
            self._logits = torch.empty(num_rows, self.spec.vocabulary_size)
        return self._logits[:num_rows]

    def choose(
        self,
        num_rows: int,
        logits: int,
        draws: bytes,
        tokens: ctypes.Array[ctypes.c_int32],
        traces: ctypes.Array[ctypes.c_char],
    ) -> None:
        """Choose a token a row; see ``textmill_choose``."""
        self._library.textmill_choose(self._handle, num_rows, logits, draws, tokens, traces)

    def seconds(self) -> dict[str, float]:
        """Time spent since the start, by what it went into."""
        spent = (ctypes.c_double * 4)()
        self._library.textmill_seconds(self._handle, spent)
        return dict(zip(("products", "attention", "other", "head"), spent, strict=True))


def _float32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
