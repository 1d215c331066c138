"""Three ways to compute the same attention in PyTorch, each for what it is good at.

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
    """What all layers of one forward pass share.

    Attributes:
        num_rows: rows; each has ``length`` new tokens.
        live: positions that attention reads, a multiple of ``KV_BLOCK_TOKENS``.
        write: (rows * length * kv heads,) int64, where new keys go in a layer's cache seen as
            (slots * kv heads * capacity, head_dim).
        slots: the slots that attention reads: a range (a view of the cache, no copy), or the rows'
            own where those lie so far apart that gathering them is cheaper.
        places: (rows,) int64, each row's place among ``slots``; ``None`` when simply in order.
        visible: per window, (len(slots) or 1, 1, 1, length, live) bool.
        cos: (rows * length, 1, head_dim / 2), where positions are rotary; ``sin`` alike.
        texts: each row's slot and the position of its first new token; empty where it is not known
            on the host.
    """

    num_rows: int
    length: int
    live: int
    write: Tensor
    slots: slice | Tensor
    places: Tensor | None
    visible: dict[int | None, Tensor]
    cos: Tensor | None
    sin: Tensor | None
    texts: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """What attention needs to know of a layer."""

    num_kv_heads: int
    head_dim: int
    score_scale: float
    window: int | None


# Arguments: queries (rows * length, heads, head_dim); a layer's keys and values (slots, kv heads,
# capacity, head_dim), those of the new tokens included; the layer's shape; the step.
# Returns (rows * length, heads * head_dim).
Attention = Callable[[Tensor, Tensor, Tensor, Shape, Step], Tensor]


def attention_for(device: torch.device, dtype: torch.dtype) -> Attention:
    """The one for a device and a type."""
    if device.type != "cpu":
        return fused
    return text_by_text if dtype == torch.bfloat16 else in_float32


def in_float32(query: Tensor, keys: Tensor, values: Tensor, shape: Shape, step: Step) -> Tensor:
    """A row's result has the same last bit in every batch; see ``decoder`` for the reason."""
    query = _grouped(query.float() * shape.score_scale, shape, step)
    keys = keys[step.slots, :, : step.live].float()  # (read, kv heads, live, head_dim)
    values = values[step.slots, :, : step.live].float()
    if step.places is not None:
        spread = query.new_zeros(keys.shape[0], *query.shape[1:])
        query = spread.index_copy_(0, step.places, query)
    scores = torch.matmul(query, keys.transpose(-1, -2))
    scores = scores.view(*scores.shape[:2], -1, step.length, step.live)
    scores.masked_fill_(~step.visible[shape.window], -torch.inf)
    mixed = torch.matmul(softmax(scores, -1).flatten(2, 3), values)
    return _apart(mixed if step.places is None else mixed[step.places], shape, step)


def text_by_text(query: Tensor, keys: Tensor, values: Tensor, shape: Shape, step: Step) -> Tensor:
    """Each text by itself, over its own positions and no others, rounded as transformers rounds.

    In bfloat16 the two largest logits are often the same number, so that a text is that of
    transformers only where every rounding is. It is slower than one product for all rows.
    """
    mixed = []
    for row, (slot, first) in enumerate(step.texts):
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
    """One fused kernel for all rows, which a GPU has.

    The query heads of one key-value head stand as rows above each other: the kernels that take a
    mask do not take groups of heads.
    """
    visible = step.visible[shape.window]
    group = query.shape[1] // shape.num_kv_heads
    visible = visible.expand(-1, -1, group, -1, -1).flatten(2, 3)
    mixed = scaled_dot_product_attention(
        _grouped(query, shape, step),
        keys[step.slots, :, : step.live],
        values[step.slots, :, : step.live],
        visible,
        scale=shape.score_scale,
    )
    return _apart(mixed, shape, step)


def _grouped(query: Tensor, shape: Shape, step: Step) -> Tensor:
    """(rows, kv heads, heads a kv head * length, head_dim)."""
    query = query.view(step.num_rows, step.length, shape.num_kv_heads, -1, shape.head_dim)
    return query.permute(0, 2, 3, 1, 4).reshape(
        step.num_rows, shape.num_kv_heads, -1, shape.head_dim
    )


def _apart(mixed: Tensor, shape: Shape, step: Step) -> Tensor:
    """What ``_grouped`` put together, (rows * length, heads * head_dim)."""
    mixed = mixed.view(step.num_rows, shape.num_kv_heads, -1, step.length, shape.head_dim)
    return mixed.permute(0, 3, 1, 2, 4).reshape(step.num_rows * step.length, -1)
