"""Rows of a vocabulary's width in pieces: blocks of ids to sum and search, chunks of rows to pass.

Knows nothing of strategies. What is computed by blocks is the same, to the last bit, for a row
alone and among others: a block is always as wide, and torch reduces each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# What sums or searches a row takes whole blocks first: about the root of a vocabulary's size.
BLOCK_TOKENS = 256
# What an operation leaves beside its input: 2 MB of float32 stay in a processor's cache. Above
# about 25 MB the C library hands memory back between any two steps, and to have it again takes
# longer than to compute what stands in it: measured, 1 ms for each 4 MB.
CHUNK_VALUES = 2**19


def taken(scores: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows, copied, and filled up to whole blocks with what can never be drawn.

    Args:
        scores: (all, vocabulary) float32.
        rows: which of them.

    Returns:
        (rows, a multiple of ``BLOCK_TOKENS``) float32.
    """
    size = scores.shape[-1]
    missing = -size % BLOCK_TOKENS
    if not missing:
        return scores.index_select(0, torch.tensor(rows))
    copy = scores.new_empty(len(rows), size + missing)
    copy[:, size:] = -torch.inf
    for place, row in enumerate(rows):
        copy[place, :size] = scores[row]
    return copy


def chunks(values: Tensor) -> Iterator[slice]:
    """The rows of a tensor, ``CHUNK_VALUES`` or one row at a time."""
    num_rows = max(1, CHUNK_VALUES // values.shape[-1])
    for start in range(0, values.shape[0], num_rows):
        yield slice(start, start + num_rows)


def sums(values: Tensor) -> Tensor:
    """The sum of each block; (rows, blocks) float32."""
    return _by_block(values).sum(-1)


def maxima(values: Tensor) -> Tensor:
    """The largest value of each block; (rows, blocks) float32."""
    return _by_block(values).amax(-1)


def _by_block(values: Tensor) -> Tensor:
    num_rows, width = values.shape
    return values.view(num_rows, width // BLOCK_TOKENS, BLOCK_TOKENS)


def ids_in(blocks: Tensor) -> Tensor:
    """The ids in some blocks, in their order.

    Args:
        blocks: (rows, n) int64, which ones.

    Returns:
        (rows, n * BLOCK_TOKENS) int64.
    """
    return (blocks[:, :, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten(1)
