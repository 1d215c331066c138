"""One decoder for GPT-Neo, GPT-2 and Llama.

A family is described by ``DecoderSpec``; the arithmetic here knows no family by name. Knows
nothing of tokens' texts, strategies or jobs.

A row's logits do not depend on its neighbours, to the last bit. Two arrangements see to that, both
found by trying on MKL 2024.2 with AVX-512 and held by ``test_independence``:

- Matrix products get a multiple of ``ROW_BLOCK`` rows. With 1, 2, 3, 5, 6, 7, 9, 10 or 11 rows MKL
  takes kernels that add in another order; with 4, 8 and from 12 on it does not.
- Attention reads a multiple of ``LIVE_BLOCK_TOKENS`` positions and goes through ``matmul`` and
  ``softmax``: what is masked adds exact zeros in the same order however many there are.
  ``scaled_dot_product_attention`` does not have this property.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, pad, rms_norm, silu, softmax

from worker.models.cache import LIVE_BLOCK_TOKENS, SlotCache

ROW_BLOCK = 4
Affine = tuple[Tensor, Tensor | None]  # weight (out, in) or (width,), and bias


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (Su et al., 2021), with Llama 3's scaling where ``factor`` is not 1."""

    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What a family's decoder is made of.

    Attributes:
        norm: ``"layer"`` or ``"rms"``.
        feed_forward: ``"gelu"`` (in its tanh form) or ``"swiglu"``.
        score_scale: what attention scores are multiplied by before the softmax.
        windows: per layer, how many positions back a token sees, itself included; ``None`` for all.
        rope: rotary positions; ``None`` where positions are learned vectors.
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
class LayerWeights:
    """The weights of one block."""

    norm1: Affine
    qkv: Affine  # queries, keys and values, one above the other
    out: Affine
    norm2: Affine
    up: Affine  # gate and up, one above the other, where gated
    down: Affine

    def num_parameters(self) -> int:
        """Numbers that were trained."""
        parts = (self.norm1, self.qkv, self.out, self.norm2, self.up, self.down)
        return sum(t.numel() for part in parts for t in part if t is not None)


@dataclass(slots=True)
class DecoderWeights:
    """All weights of a decoder."""

    embedding: Tensor  # (vocabulary, width)
    position_embedding: Tensor | None  # (context, width)
    layers: Iterable[LayerWeights]
    final_norm: Affine
    head: Affine  # (vocabulary, width)

    def num_outer_parameters(self) -> int:
        """Numbers outside the layers; a head tied to the embedding counts once."""
        tensors = [self.embedding, self.position_embedding, *self.final_norm, *self.head]
        distinct = {t.data_ptr(): t.numel() for t in tensors if t is not None}
        return sum(distinct.values())


@dataclass(slots=True)
class Step:
    """What all layers of one forward pass share.

    Attributes:
        num_rows: rows; each has ``length`` new tokens.
        live: positions that attention reads, a multiple of ``LIVE_BLOCK_TOKENS``.
        write: (rows * length * kv heads,) int64, where new keys go in a layer's cache seen as
            (slots * kv heads * capacity, head_dim).
        slots: the slots that attention reads: a range (a view of the cache, no copy), or the rows'
            own where those lie so far apart that gathering them is cheaper.
        places: (rows,) int64, each row's place among ``slots``; ``None`` when simply in order.
        masks: per window, 0 or -inf, (len(slots) or 1, 1, 1, length, live) float32.
        cos: (rows * length, 1, head_dim / 2) float32, where positions are rotary; ``sin`` alike.
    """

    num_rows: int
    length: int
    live: int
    write: Tensor
    slots: slice | Tensor
    places: Tensor | None
    masks: dict[int | None, Tensor]
    cos: Tensor | None
    sin: Tensor | None


class Decoder:
    """Computes logits for rows of tokens that stand in slots of the cache."""

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, num_slots: int) -> None:
        self.spec = spec
        self._weights = weights
        self._layers = list(weights.layers)
        self.num_parameters = weights.num_outer_parameters() + sum(
            layer.num_parameters() for layer in self._layers
        )
        self.cache = SlotCache(
            num_layers=spec.num_layers,
            num_slots=num_slots,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            context_length=spec.context_length,
            dtype=weights.embedding.dtype,
        )
        self._tables = rotary_tables(spec, spec.rope) if spec.rope is not None else None

    @torch.inference_mode()
    def forward(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> Tensor:
        """Logits after the last token of every row.

        Args:
            tokens: (rows, length) int64; the tokens of a row are neighbours in its text.
            first_positions: (rows,) int64, the position of each row's first token.
            slots: (rows,) int64, distinct; ascending is quickest.

        Returns:
            (rows, vocabulary) float32.
        """
        num_rows, length = tokens.shape
        hidden = self._advance(tokens, first_positions, slots)
        if length > 1:
            hidden = _padded(hidden[length - 1 : num_rows * length : length])
        return self._logits(hidden)[:num_rows]

    @torch.inference_mode()
    def forward_everywhere(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> Tensor:
        """As ``forward``, after every token: (rows, length, vocabulary) float32."""
        num_rows, length = tokens.shape
        logits = self._logits(self._advance(tokens, first_positions, slots))
        return logits[: num_rows * length].view(num_rows, length, -1)

    @torch.inference_mode()
    def fill(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> None:
        """As ``forward``, for the cache's sake alone."""
        self._advance(tokens, first_positions, slots)

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear(self._norm(hidden, self._weights.final_norm), *self._weights.head).float()

    def _advance(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> Tensor:
        """Hidden states (rows * length, padded to ROW_BLOCK; width) before the last norm."""
        positions = first_positions[:, None] + torch.arange(tokens.shape[1])  # (rows, length)
        hidden = self._weights.embedding[tokens.flatten()]
        if self._weights.position_embedding is not None:
            hidden = hidden + self._weights.position_embedding[positions.flatten()]
        hidden = _padded(hidden)
        step = self._plan(positions, slots)
        for index, layer in enumerate(self._layers):
            normed = self._norm(hidden, layer.norm1)
            hidden = hidden + self._attend(index, layer, normed, step)
            hidden = hidden + self._feed(layer, self._norm(hidden, layer.norm2))
        return hidden

    def _plan(self, positions: Tensor, slots: Tensor) -> Step:
        spec, capacity = self.spec, self.cache.capacity
        num_rows, length = positions.shape
        live = -(-(int(positions.max()) + 1) // LIVE_BLOCK_TOKENS) * LIVE_BLOCK_TOKENS
        heads = slots[:, None] * spec.num_kv_heads + torch.arange(spec.num_kv_heads)
        write = heads[:, None] * capacity + positions[..., None]  # (rows, length, kv heads)
        low, high = int(slots.min()), int(slots.max()) + 1
        read: slice | Tensor = slice(low, high)
        places = None
        if high - low > 2 * num_rows:
            read = slots
        elif not torch.equal(slots, torch.arange(low, high)):
            places = slots - low
        cos = sin = None
        if self._tables is not None:
            cos, sin = (table[positions.flatten()][:, None] for table in self._tables)
        masks = self._masks(positions, live, places, high - low)
        return Step(num_rows, length, live, write.flatten(), read, places, masks, cos, sin)

    def _masks(
        self, positions: Tensor, live: int, places: Tensor | None, num_read: int
    ) -> dict[int | None, Tensor]:
        keys = torch.arange(live)
        masks = {}
        for window in set(self.spec.windows):
            hidden = keys > positions[..., None]
            if window is not None:
                hidden |= keys <= positions[..., None] - window
            mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
            if places is not None:  # a slot between that nobody asked for sees everything
                mask = mask.new_zeros(num_read, *mask.shape[1:]).index_copy_(0, places, mask)
            masks[window] = mask[:, None, None]
        return masks

    def _norm(self, hidden: Tensor, weights: Affine) -> Tensor:
        shape = (self.spec.width,)
        if self.spec.norm == "rms":
            return rms_norm(hidden, shape, weights[0], self.spec.norm_eps)
        return layer_norm(hidden, shape, weights[0], weights[1], self.spec.norm_eps)

    def _attend(self, index: int, layer: LayerWeights, hidden: Tensor, step: Step) -> Tensor:
        """Write keys and values of the new tokens, and attend over all that are visible.

        Args:
            index: of the layer.
            layer: its weights.
            hidden: (rows * length, padded; width), normed.
            step: what the layers share.

        Returns:
            As ``hidden``.
        """
        spec = self.spec
        qkv = linear(hidden, *layer.qkv).view(hidden.shape[0], -1, spec.head_dim)
        qkv = qkv[: step.num_rows * step.length]
        num_turned = spec.num_heads + spec.num_kv_heads
        turned, value = qkv[:, :num_turned], qkv[:, num_turned:]
        if step.cos is not None and step.sin is not None:
            turned = _rotate(turned, step.cos, step.sin)
        query, key = turned[:, : spec.num_heads], turned[:, spec.num_heads :]
        keys, values = self.cache.keys[index], self.cache.values[index]
        keys.view(-1, spec.head_dim).index_copy_(0, step.write, key.reshape(-1, spec.head_dim))
        values.view(-1, spec.head_dim).index_copy_(0, step.write, value.reshape(-1, spec.head_dim))
        mixed = self._mix(query, keys, values, step.masks[spec.windows[index]], step)
        return linear(_padded(mixed.to(hidden.dtype)), *layer.out)

    def _mix(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, step: Step) -> Tensor:
        """Attention in float32; (rows * length, width of all heads)."""
        spec, rows, length = self.spec, step.num_rows, step.length
        group = spec.num_heads // spec.num_kv_heads
        query = (query.float() * spec.score_scale).view(rows, length, -1, group, spec.head_dim)
        query = query.permute(0, 2, 3, 1, 4).reshape(rows, -1, group * length, spec.head_dim)
        keys = keys[step.slots, :, : step.live].float()  # (read, kv heads, live, head_dim)
        values = values[step.slots, :, : step.live].float()
        if step.places is not None:
            spread = query.new_zeros(keys.shape[0], *query.shape[1:])
            query = spread.index_copy_(0, step.places, query)
        scores = torch.matmul(query, keys.transpose(-1, -2))
        scores.view(*scores.shape[:2], group, length, step.live).add_(mask)
        mixed = torch.matmul(softmax(scores, -1), values)
        if step.places is not None:
            mixed = mixed[step.places]
        mixed = mixed.view(rows, -1, group, length, spec.head_dim)
        return mixed.permute(0, 3, 1, 2, 4).reshape(rows * length, -1)

    def _feed(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        up = linear(hidden, *layer.up)
        if self.spec.feed_forward == "swiglu":
            gate, up = up.chunk(2, -1)
            return linear(silu(gate) * up, *layer.down)
        return linear(gelu(up, approximate="tanh"), *layer.down)


def _padded(rows: Tensor) -> Tensor:
    """Zero rows at the end, up to a multiple of ``ROW_BLOCK``."""
    missing = -rows.shape[0] % ROW_BLOCK
    return pad(rows, (0, 0, 0, missing)) if missing else rows


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.float().chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return turned.to(heads.dtype)


def rotary_tables(spec: DecoderSpec, rope: Rope) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, head_dim / 2) float32."""
    exponents = torch.arange(0, spec.head_dim, 2).float() / spec.head_dim
    frequencies = 1.0 / rope.theta**exponents  # transformers' arithmetic, to the last bit
    if rope.factor != 1.0:
        frequencies = _scaled(frequencies, rope)
    angles = torch.outer(torch.arange(spec.context_length).float(), frequencies)
    return angles.cos(), angles.sin()


def _scaled(frequencies: Tensor, rope: Rope) -> Tensor:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, those between blended."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turns = rope.original_context_length * frequencies / (2 * torch.pi)
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies
