"""One decoder for GPT-Neo, GPT-2 and Llama.

``DecoderSpec`` in ``weights`` describes a family; the code here knows no family by name.
Knows nothing of text, strategies or jobs.

A row's logits do not depend on the other rows, to the last bit. Two measures ensure that. Both were
found by experiments with MKL 2024.2 and AVX-512, and ``test_decoder.py`` tests them:

- Matrix products get a multiple of ``ROW_BLOCK`` rows. With 1, 2, 3, 5, 6, 7, 9, 10 or 11 rows MKL
  uses kernels that add in another order; with 4, 8 and from 12 on it does not.
- Attention reads a multiple of ``KV_BLOCK_TOKENS`` positions and uses ``matmul`` and ``softmax``:
  masked positions add exact zeros in the same order, however many there are.
  ``scaled_dot_product_attention`` does not have this property.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, pad, rms_norm, silu

from textmill.engine.models.attention import Attention, Shape, Step, attention_for
from textmill.engine.models.cache import KV_BLOCK_TOKENS
from textmill.engine.models.rotary import rotary_tables
from textmill.engine.models.tensor_cache import TensorCache
from textmill.engine.models.weights import (
    Affine,
    DecoderSpec,
    DecoderWeights,
    LayerWeights,
    Rows,
)

ROW_BLOCK = 4
_HOST = torch.device("cpu")


def in_torch(
    weights: DecoderWeights[Rows], dtype: torch.dtype, device: torch.device = _HOST
) -> DecoderWeights[Tensor]:
    """Convert weights to tensors of a type on a device; a tied head stays tied."""

    def tensor(array: Rows) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.float32)).to(device, dtype)

    def part(affine: Affine[Rows]) -> Affine[Tensor]:
        return tensor(affine[0]), None if affine[1] is None else tensor(affine[1])

    def layer(own: LayerWeights[Rows]) -> LayerWeights[Tensor]:
        names = ("norm1", "qkv", "out", "norm2", "up", "down")
        return LayerWeights(*(part(getattr(own, name)) for name in names))

    embedding = tensor(weights.embedding)
    table, (head, bias) = weights.position_embedding, weights.head
    return DecoderWeights(
        embedding,
        None if table is None else tensor(table),
        map(layer, weights.layers),
        part(weights.final_norm),
        (
            embedding if head is weights.embedding else tensor(head),
            None if bias is None else tensor(bias),
        ),
    )


class Decoder:
    """Computes logits for tokens of sequences that have slots in the cache."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights[Tensor],
        num_slots: int,
        attention: Attention | None = None,
    ) -> None:
        """Use weights on their device, with a cache for ``num_slots`` sequences.

        ``attention`` defaults to the implementation for their device and type.
        """
        self.spec = spec
        self.device, self.dtype = weights.embedding.device, weights.embedding.dtype
        # Whether every sum must be rounded as when transformers computes the sequence alone.
        # PyTorch's bfloat16 products on a CPU add 1,536 numbers and more in another order for one
        # row than for several, and its attention depends on the number of queries.
        self.is_mirror = self.device.type == "cpu" and self.dtype == torch.bfloat16
        self._weights = weights
        self._layers = list(weights.layers)
        self.num_parameters = weights.num_outer_parameters() + sum(
            layer.num_parameters() for layer in self._layers
        )
        self.cache = TensorCache(
            num_layers=spec.num_layers,
            num_slots=num_slots,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            context_length=spec.context_length,
            dtype=self.dtype,
            device=self.device,
        )
        self._mix = attention or attention_for(self.device, self.dtype)
        self._shapes = [
            Shape(spec.num_kv_heads, spec.head_dim, spec.score_scale, window)
            for window in spec.windows
        ]
        self._tables = None
        if spec.rope is not None:
            tables = rotary_tables(spec.rope, spec.context_length, spec.head_dim)
            cos, sin = map(torch.from_numpy, tables)
            # transformers rotates in the type of the weights, so this does too.
            self._tables = cos.to(self.device, self.dtype), sin.to(self.device, self.dtype)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> Tensor:
        """Logits after the last token of every row.

        Args:
            tokens: (rows, length) int64; the tokens of a row are consecutive in its sequence.
            first_positions: (rows,) int64, the position of each row's first token.
            slots: (rows,) int64, distinct; ascending order is fastest.

        Returns:
            (rows, vocabulary) float32.
        """
        num_rows, length = tokens.shape
        hidden = self._advance(tokens, first_positions, slots)
        if length > 1:
            hidden = _padded(hidden[length - 1 : num_rows * length : length])
        return self.logits(hidden)[:num_rows]

    @torch.inference_mode()
    def forward_everywhere(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> Tensor:
        """Like ``forward``, but after every token: (rows, length, vocabulary) float32."""
        num_rows, length = tokens.shape
        logits = self.logits(self._advance(tokens, first_positions, slots))
        return logits[: num_rows * length].view(num_rows, length, -1)

    @torch.inference_mode()
    def fill(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> None:
        """Like ``forward``, but only fills the cache."""
        self._advance(tokens, first_positions, slots)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (rows, vocabulary) float32 of hidden states (rows, width)."""
        return linear(self._norm(hidden, self._weights.final_norm), *self._weights.head).float()

    def _advance(self, tokens: Tensor, first_positions: Tensor, slots: Tensor) -> Tensor:
        """Hidden states (rows * length, padded to ROW_BLOCK; width) before the last norm."""
        positions = first_positions[:, None] + torch.arange(tokens.shape[1])  # (rows, length)
        step = self._plan(positions, slots)
        return self.run(tokens.flatten().to(self.device), positions.flatten().to(self.device), step)

    def run(self, tokens: Tensor, positions: Tensor, step: Step) -> Tensor:
        """Hidden states before the last norm.

        Args:
            tokens: (rows * length,) int64 on the decoder's device.
            positions: like tokens.
            step: their places in the cache and their masks.

        Returns:
            (rows * length, padded to ROW_BLOCK; width).
        """
        hidden = self._weights.embedding[tokens]
        if self._weights.position_embedding is not None:
            hidden = hidden + self._weights.position_embedding[positions]
        hidden = _padded(hidden)
        for index, layer in enumerate(self._layers):
            normed = self._norm(hidden, layer.norm1)
            hidden = hidden + self._attend(index, layer, normed, step)
            hidden = hidden + self._feed(layer, self._norm(hidden, layer.norm2), step)
        return hidden

    def _plan(self, positions: Tensor, slots: Tensor) -> Step:
        """Plan a step from positions (rows, length) and slots (rows,), both on the host."""
        num_rows, length = positions.shape
        kv_len = padded_kv_len(int(positions.max()) + 1)
        low, high = int(slots.min()), int(slots.max()) + 1
        read: slice | Tensor = slice(low, high)
        places = None
        if high - low > 2 * num_rows:
            read = slots
        elif not torch.equal(slots, torch.arange(low, high)):
            places = slots - low
        visible = self.visible(positions, kv_len)
        if places is not None:  # slots of no row, in between, are not masked
            visible = {
                window: seen.new_ones(high - low, *seen.shape[1:]).index_copy_(0, places, seen)
                for window, seen in visible.items()
            }
        return Step(
            num_rows,
            length,
            kv_len,
            self.write_places(positions, slots).to(self.device),
            read.to(self.device) if isinstance(read, Tensor) else read,
            None if places is None else places.to(self.device),
            {window: seen.to(self.device) for window, seen in visible.items()},
            *self.rotations(positions.flatten().to(self.device)),
            list(zip(slots.tolist(), positions[:, 0].tolist(), strict=True)),
        )

    def write_places(self, positions: Tensor, slots: Tensor) -> Tensor:
        """``Step.write`` for positions (rows, length) in slots (rows,)."""
        heads = torch.arange(self.spec.num_kv_heads, device=slots.device)
        heads = slots[:, None] * self.spec.num_kv_heads + heads
        return (heads[:, None] * self.cache.capacity + positions[..., None]).flatten()

    def visible(self, positions: Tensor, kv_len: int) -> dict[int | None, Tensor]:
        """``Step.visible`` for positions (rows, length)."""
        keys = torch.arange(kv_len, device=positions.device)
        found = {}
        for window in set(self.spec.windows):
            seen = keys <= positions[..., None]
            if window is not None:
                seen &= keys > positions[..., None] - window
            found[window] = seen[:, None, None]
        return found

    def rotations(self, positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``Step.cos`` and ``Step.sin`` for positions (rows * length,)."""
        if self._tables is None:
            return None, None
        cos, sin = self._tables
        return cos[positions][:, None], sin[positions][:, None]

    def _norm(self, hidden: Tensor, weights: Affine[Tensor]) -> Tensor:
        shape = (self.spec.width,)
        if self.spec.norm == "rms" and self.dtype != torch.float32:  # rounded as in transformers
            wide = hidden.float()
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.spec.norm_eps)
            return weights[0] * wide.to(hidden.dtype)
        if self.spec.norm == "rms":
            return rms_norm(hidden, shape, weights[0], self.spec.norm_eps)
        return layer_norm(hidden, shape, weights[0], weights[1], self.spec.norm_eps)

    def _attend(
        self, index: int, layer: LayerWeights[Tensor], hidden: Tensor, step: Step
    ) -> Tensor:
        """Write keys and values of the new tokens, and attend to all visible positions.

        Args:
            index: of the layer.
            layer: its weights.
            hidden: (rows * length, padded; width), normed.
            step: the data that the layers share.

        Returns:
            like ``hidden``.
        """
        spec = self.spec
        qkv = linear(hidden, *layer.qkv).view(hidden.shape[0], -1, spec.head_dim)
        qkv = qkv[: step.num_rows * step.length]
        num_rotated = spec.num_heads + spec.num_kv_heads
        rotated, value = qkv[:, :num_rotated], qkv[:, num_rotated:]
        if step.cos is not None and step.sin is not None:
            rotated = _rotate(rotated, step.cos, step.sin)
        query, key = rotated[:, : spec.num_heads], rotated[:, spec.num_heads :]
        keys, values = self.cache.keys[index], self.cache.values[index]
        keys.view(-1, spec.head_dim).index_copy_(0, step.write, key.reshape(-1, spec.head_dim))
        values.view(-1, spec.head_dim).index_copy_(0, step.write, value.reshape(-1, spec.head_dim))
        mixed = self._mix(query, keys, values, self._shapes[index], step)
        return linear(_padded(mixed.to(hidden.dtype)), *layer.out)

    def _feed(self, layer: LayerWeights[Tensor], hidden: Tensor, step: Step) -> Tensor:
        up = linear(hidden, *layer.up)
        if self.spec.feed_forward == "swiglu":
            gate, up = up.chunk(2, -1)
            inner = silu(gate) * up
        else:
            inner = gelu(up, approximate="tanh")
        if self.is_mirror and step.length == 1:
            return torch.cat([linear(row, *layer.down) for row in inner.split(1)])
        return linear(inner, *layer.down)


def _padded(rows: Tensor) -> Tensor:
    """Append rows of zeros, up to a multiple of ``ROW_BLOCK``."""
    missing = -rows.shape[0] % ROW_BLOCK
    return pad(rows, (0, 0, 0, missing)) if missing else rows


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def padded_kv_len(end: int) -> int:
    """``end``, rounded up to whole blocks of positions."""
    return -(-end // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
