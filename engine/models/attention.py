"""Three implementations of attention in PyTorch, for different devices and number types.

Knows nothing of weights or of families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax


@dataclass(slots=True)
class Step:
    """The data of a forward pass that all layers share.

    Attributes:
        num_rows: the number of rows; each has ``length`` new tokens.
        kv_len: the positions that attention reads, a multiple of ``KV_BLOCK_TOKENS``.
        write: (rows * length * kv heads,) int64, indices of the new keys in a layer's cache, viewed
            as (slots * kv heads * capacity, head_dim).
        slots: the slots that attention reads: a range (a view of the cache, no copy), or the rows'
            own slots if they are so far apart that gathering them is cheaper.
        places: (rows,) int64, each row's index among ``slots``; ``None`` if they are in order.
        visible: per window, (len(slots) or 1, 1, 1, length, kv_len) bool.
        cos: (rows * length, 1, head_dim / 2), for rotary positions; ``sin`` has the same shape.
        starts: each row's slot and the position of its first new token; empty if it is not known
            on the host.
    """

    num_rows: int
    length: int
    kv_len: int
    write: Tensor
    slots: slice | Tensor
    places: Tensor | None
    visible: dict[int | None, Tensor]
    cos: Tensor | None
    sin: Tensor | None
    starts: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a layer that attention uses."""

    num_kv_heads: int
    head_dim: int
    score_scale: float
    window: int | None


# Arguments: queries (rows * length, heads, head_dim); a layer's keys and values (slots, kv heads,
# capacity, head_dim), including those of the new tokens; the layer's shape; the step.
# Returns (rows * length, heads * head_dim).
Attention = Callable[[Tensor, Tensor, Tensor, Shape, Step], Tensor]


def attention_for(device: torch.device, dtype: torch.dtype) -> Attention:
    """Return the implementation for a device and a number type."""
    if device.type != "cpu":
        return fused
    return row_by_row if dtype == torch.bfloat16 else in_float32


def in_float32(query: Tensor, keys: Tensor, values: Tensor, shape: Shape, step: Step) -> Tensor:
    """Attention in float32. A row's result is the same in every batch; see ``decoder``."""
    query = _grouped(query.float() * shape.score_scale, shape, step)
    keys = keys[step.slots, :, : step.kv_len].float()  # (read, kv heads, kv_len, head_dim)
    values = values[step.slots, :, : step.kv_len].float()
    if step.places is not None:
        scattered = query.new_zeros(keys.shape[0], *query.shape[1:])
        query = scattered.index_copy_(0, step.places, query)
    scores = torch.matmul(query, keys.transpose(-1, -2))
    scores = scores.view(*scores.shape[:2], -1, step.length, step.kv_len)
    scores.masked_fill_(~step.visible[shape.window], -torch.inf)
    mixed = torch.matmul(softmax(scores, -1).flatten(2, 3), values)
    return _ungrouped(mixed if step.places is None else mixed[step.places], shape, step)


def row_by_row(query: Tensor, keys: Tensor, values: Tensor, shape: Shape, step: Step) -> Tensor:
    """Attention of each row by itself, over its own positions only, rounded as in transformers.

    In bfloat16 the two largest logits are often equal, so the tokens are those of transformers only
    if every rounding is the same. It is slower than one product for all rows.
    """
    mixed = []
    for row, (slot, first) in enumerate(step.starts):
        end = first + step.length
        start = 0 if shape.window is None else max(0, first + 1 - shape.window)
        own = query[row * step.length : (row + 1) * step.length]
        visible = None
        if step.length > 1 and (start or first or shape.window is not None):
            place = row if isinstance(step.slots, Tensor) else slot - step.slots.start
            visible = step.visible[shape.window][place, :, 0, :, start:end]
        found = scaled_dot_product_attention(
            own.transpose(0, 1)[None],
            keys[slot : slot + 1, :, start:end],
            values[slot : slot + 1, :, start:end],
            visible,
            is_causal=step.length > 1 and visible is None,
            scale=shape.score_scale,
            enable_gqa=True,
        )
        mixed.append(found[0].transpose(0, 1).flatten(1))
    return torch.cat(mixed)


def fused(query: Tensor, keys: Tensor, values: Tensor, shape: Shape, step: Step) -> Tensor:
    """One fused kernel for all rows, for GPUs.

    The query heads of a key-value head become further queries, because the kernels that accept a
    mask do not accept groups of heads.
    """
    visible = step.visible[shape.window]
    group = query.shape[1] // shape.num_kv_heads
    visible = visible.expand(-1, -1, group, -1, -1).flatten(2, 3)
    mixed = scaled_dot_product_attention(
        _grouped(query, shape, step),
        keys[step.slots, :, : step.kv_len],
        values[step.slots, :, : step.kv_len],
        visible,
        scale=shape.score_scale,
    )
    return _ungrouped(mixed, shape, step)


def _grouped(query: Tensor, shape: Shape, step: Step) -> Tensor:
    """(rows, kv heads, heads a kv head * length, head_dim)."""
    query = query.view(step.num_rows, step.length, shape.num_kv_heads, -1, shape.head_dim)
    return query.permute(0, 2, 3, 1, 4).reshape(
        step.num_rows, shape.num_kv_heads, -1, shape.head_dim
    )


def _ungrouped(mixed: Tensor, shape: Shape, step: Step) -> Tensor:
    """The inverse of ``_grouped``: (rows * length, heads * head_dim)."""
    mixed = mixed.view(step.num_rows, shape.num_kv_heads, -1, step.length, shape.head_dim)
    return mixed.permute(0, 3, 1, 2, 4).reshape(step.num_rows * step.length, -1)
