"""The sizes of a decoder and its weights, as numpy arrays or as tensors. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from textmill.engine.models.rotary import Rope

Float32 = NDArray[np.float32]


class Array(Protocol):
    """A numpy array or a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...


class Rows(Protocol):
    """A NumPy array, or a tensor in a file (``StoredRows``), that is read by parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Some of its rows."""
        ...

    def __array__(self, *, copy: bool | None = None) -> NDArray[Any]:
        """All of them."""
        ...


A = TypeVar("A", bound=Array)
Affine = tuple[A, A | None]  # weight (out, in) or (width,), and bias


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """The sizes and constants of a decoder.

    Attributes:
        norm: ``"layer"`` or ``"rms"``.
        feed_forward: ``"gelu"`` (in its tanh form) or ``"swiglu"``.
        score_scale: the factor of attention scores before the softmax.
        windows: by layer, the number of positions that a token attends to, including its own;
            ``None`` for all.
        rope: rotary positions; ``None`` if positions are learned vectors.
    """

    family: str
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    vocabulary_size: int
    norm: str
    norm_eps: float
    feed_forward: str
    score_scale: float
    windows: tuple[int | None, ...]
    rope: Rope | None = None


@dataclass(slots=True)
class LayerWeights(Generic[A]):
    """The weights of one block."""

    norm1: Affine[A]
    qkv: Affine[A]  # queries, keys and values, concatenated
    out: Affine[A]
    norm2: Affine[A]
    up: Affine[A]  # with a gated feed-forward part, gate and up, concatenated
    down: Affine[A]

    def num_parameters(self) -> int:
        """The number of trained parameters."""
        parts = (self.norm1, self.qkv, self.out, self.norm2, self.up, self.down)
        return sum(math.prod(t.shape) for part in parts for t in part if t is not None)


@dataclass(slots=True)
class DecoderWeights(Generic[A]):
    """All weights of a decoder. A head that is tied to the embedding is the same object."""

    embedding: A  # (vocabulary, width)
    position_embedding: A | None  # (context, width)
    layers: Iterable[LayerWeights[A]]
    final_norm: Affine[A]
    head: Affine[A]  # (vocabulary, width)

    def num_outer_parameters(self) -> int:
        """The number of parameters outside the layers; a tied head is counted once."""
        arrays = [self.embedding, self.position_embedding, *self.final_norm, *self.head]
        distinct = {id(t): math.prod(t.shape) for t in arrays if t is not None}
        return sum(distinct.values())
