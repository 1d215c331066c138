"""One decoder for GPT-Neo, GPT-2 and Llama, with a key-value cache of slots.

A family is described by ``DecoderSpec``; the arithmetic here knows no family by name. Rows join
and leave by slot: nobody's cache is copied. Knows nothing of tokens' texts, strategies or jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, silu, softmax

SMALLEST_CAPACITY = 256  # positions a slot; most texts fit


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What a family's decoder is made of."""

    family: str
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    vocabulary_size: int
    norm: str  # "layer" or "rms"
    norm_eps: float
    positions: str  # "learned" or "rotary"
    feed_forward: str  # "gelu" (tanh form) or "swiglu"
    score_scale: float
    windows: tuple[int | None, ...]
    rope_theta: float = 10_000.0


@dataclass(slots=True)
class LayerWeights:
    """The weights of one block; a matrix is (out, in)."""

    norm1: tuple[Tensor, Tensor | None]
    qkv: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    norm2: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None]  # gate and up, one above the other, where gated
    down: tuple[Tensor, Tensor | None]


@dataclass(slots=True)
class DecoderWeights:
    """All weights of a decoder."""

    embedding: Tensor  # (vocabulary, width)
    position_embedding: Tensor | None  # (context, width)
    layers: list[LayerWeights]
    final_norm: tuple[Tensor, Tensor | None]
    head: Tensor  # (vocabulary, width)


class SlotCache:
    """Keys and values, (slots, kv heads, capacity, head_dim) a layer, in the model's type.

    The capacity grows by doubling when a text needs it, and only then is anything copied; it falls
    back when nothing is kept any more. One block per layer up to the context's end would be simpler
    but is gigabytes for sixteen texts of SmolLM2, and untouched pages do not stay untouched: with
    huge pages each first write in a head's region claims 2 MiB.
    """

    def __init__(self, spec: DecoderSpec, num_slots: int, dtype: torch.dtype) -> None:
        """Start at the smallest capacity."""
        self._spec = spec
        self._num_slots = num_slots
        self._dtype = dtype
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Give memory back; nothing that was kept is needed any more."""
        smallest = min(SMALLEST_CAPACITY, self._spec.context_length)
        if self.capacity != smallest:
            self.capacity = smallest
            self.keys = [self._block() for _ in range(self._spec.num_layers)]
            self.values = [self._block() for _ in range(self._spec.num_layers)]

    def ensure(self, num_positions: int) -> None:
        """Make room for texts of so many tokens."""
        if num_positions <= self.capacity:
            return
        held = self.capacity
        while self.capacity < num_positions:
            self.capacity = min(2 * self.capacity, self._spec.context_length)
        for blocks in (self.keys, self.values):
            for index, block in enumerate(blocks):
                blocks[index] = self._block()
                blocks[index][:, :, :held] = block

    def _block(self) -> Tensor:
        spec = self._spec
        # Zeros, not whatever was there: a masked NaN would still spoil a weighted sum.
        return torch.zeros(
            self._num_slots, spec.num_kv_heads, self.capacity, spec.head_dim, dtype=self._dtype
        )


class Decoder:
    """Computes logits for rows of tokens that stand in slots of the cache."""

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, num_slots: int) -> None:
        self.spec = spec
        self._weights = weights
        self._dtype = weights.embedding.dtype
        self.cache = SlotCache(spec, num_slots, self._dtype)
        if spec.positions == "rotary":
            self._cos, self._sin = rotary_tables(spec)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> Tensor:
        """Logits after the last token of every row.

        Args:
            tokens: (rows, length) int64; the tokens of a row are neighbours in its text.
            first_positions: (rows,) int64, the position of each row's first token.
            slots: (rows,) int64, distinct.

        Returns:
            (rows, vocabulary) float32.
        """
        length = tokens.shape[1]
        positions = first_positions[:, None] + torch.arange(length)  # (rows, length)
        live = int(positions.max()) + 1
        self.cache.ensure(live)
        hidden = self._weights.embedding[tokens]
        if self._weights.position_embedding is not None:
            hidden = hidden + self._weights.position_embedding[positions]
        masks = self._masks(positions, live)
        for index, layer in enumerate(self._weights.layers):
            normed = self._norm(hidden, layer.norm1)
            mask = masks[self.spec.windows[index]]
            hidden = hidden + self._attend(index, layer, normed, positions, slots, live, mask)
            normed = self._norm(hidden, layer.norm2)
            hidden = hidden + self._feed(layer, normed)
        last = self._norm(hidden[:, -1], self._weights.final_norm)
        return linear(last, self._weights.head).float()

    def _masks(self, positions: Tensor, live: int) -> dict[int | None, Tensor]:
        keys = torch.arange(live)
        masks = {}
        for window in set(self.spec.windows):
            visible = keys <= positions[..., None]
            if window is not None:
                visible &= keys > positions[..., None] - window
            # (rows, 1, 1, length, live): over key-value heads and the queries that share them
            masks[window] = visible[:, None, None]
        return masks

    def _norm(self, hidden: Tensor, weights: tuple[Tensor, Tensor | None]) -> Tensor:
        shape = (self.spec.width,)
        if self.spec.norm == "rms":
            return rms_norm(hidden, shape, weights[0], self.spec.norm_eps)
        return layer_norm(hidden, shape, weights[0], weights[1], self.spec.norm_eps)

    def _attend(
        self,
        index: int,
        layer: LayerWeights,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        live: int,
        mask: Tensor,
    ) -> Tensor:
        """Write keys and values of the new tokens, and attend over all that are visible."""
        spec = self.spec
        rows, length, _ = hidden.shape
        group = spec.num_heads // spec.num_kv_heads
        qkv = linear(hidden, *layer.qkv).view(rows, length, -1, spec.head_dim)
        query, key, value = qkv.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), 2)
        if spec.positions == "rotary":
            query, key = self._rotate(query, positions), self._rotate(key, positions)
        keys, values = self.cache.keys[index], self.cache.values[index]
        keys[slots[:, None], :, positions] = key
        values[slots[:, None], :, positions] = value
        keys = keys[slots, :, :live].float()  # (rows, kv heads, live, head_dim)
        values = values[slots, :, :live].float()
        query = query.view(rows, length, spec.num_kv_heads, group, spec.head_dim)
        query = query.permute(0, 2, 3, 1, 4).float()
        scores = torch.einsum("rkgld,rkjd->rkglj", query, keys) * spec.score_scale
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
        mixed = torch.einsum("rkglj,rkjd->rkgld", softmax(scores, -1), values)
        mixed = mixed.permute(0, 3, 1, 2, 4).reshape(rows, length, -1).to(hidden.dtype)
        return linear(mixed, *layer.out)

    def _rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
        first, second = heads.float().chunk(2, -1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        return turned.to(heads.dtype)

    def _feed(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        up = linear(hidden, *layer.up)
        if self.spec.feed_forward == "swiglu":
            gate, up = up.chunk(2, -1)
            return linear(silu(gate) * up, *layer.down)
        return linear(gelu(up, approximate="tanh"), *layer.down)


def rotary_tables(spec: DecoderSpec) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, head_dim / 2) float32 (Su et al., 2021)."""
    exponent = torch.arange(0, spec.head_dim, 2).float() / spec.head_dim
    angles = torch.outer(torch.arange(spec.context_length).float(), spec.rope_theta**-exponent)
    return angles.cos(), angles.sin()
