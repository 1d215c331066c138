"""Rows of a vocabulary's width in parts: blocks of ids for sums and searches, chunks of rows.

Knows nothing of strategies. A row's result is the same to the last bit alone and in any batch:
every block has the same width, and torch reduces each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Sums and searches of a row first go over whole blocks: about the root of a vocabulary's size.
BLOCK_TOKENS = 256
# The values of a chunk: 2 MB of float32. A few such tensors fit into a processor's cache. Above
# about 25 MB in all, glibc returns the memory to the system after each step; to get it again takes
# a microsecond a page, longer than to compute the page's contents.
CHUNK_VALUES = 2**19


def chunks(rows: Sequence[int], vocabulary_size: int) -> Iterator[Sequence[int]]:
    """Split row indices into parts of about ``CHUNK_VALUES`` values, and at least one row."""
    num_rows = max(1, CHUNK_VALUES // vocabulary_size)
    for start in range(0, len(rows), num_rows):
        yield rows[start : start + num_rows]


def padded_rows(scores: Tensor, rows: Sequence[int]) -> Tensor:
    """Copy some rows, padded to whole blocks with -inf, which is never drawn.

    Args:
        scores: (all, vocabulary) float32.
        rows: indices of the rows to copy.

    Returns:
        (rows, a multiple of ``BLOCK_TOKENS``) float32.
    """
    # ``index_select`` copies row by row, and waits for all threads after each.
    copy = scores.gather(0, torch.tensor(rows)[:, None].expand(-1, scores.shape[-1]))
    missing = -scores.shape[-1] % BLOCK_TOKENS
    return functional.pad(copy, (0, missing), value=-torch.inf) if missing else copy


def sums(values: Tensor) -> Tensor:
    """The sum of each block; (rows, blocks) float32."""
    return _by_block(values).sum(-1)


def maxima(values: Tensor) -> Tensor:
    """The largest value of each block; (rows, blocks) float32."""
    return _by_block(values).amax(-1)


def ids_in(blocks: Tensor) -> Tensor:
    """The ids in some blocks, in the order of the blocks.

    Args:
        blocks: (rows, n) int64, indices of blocks.

    Returns:
        (rows, n * BLOCK_TOKENS) int64.
    """
    return (blocks[:, :, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten(1)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest values of each row in descending order; of equals, lower ids first.

    Args:
        values: (rows, a multiple of ``BLOCK_TOKENS``) float32.
        count: at most the width of a row.

    Returns:
        values and ids, each (rows, count), float32 and int64.
    """
    width = values.shape[-1]
    more = min(count + 1, width)
    by_block = maxima(values)
    if more < by_block.shape[-1]:  # the largest n values are within n blocks
        among = ids_in(by_block.topk(more).indices)
        best, places = values.gather(-1, among).topk(more)
        ids = among.gather(-1, places)
    else:
        best, ids = values.topk(more)
    ids, by_id = ids.sort(-1)
    best, by_value = best.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)
    if more > count:  # equals may have been left out; rare
        for row in (best[:, -1] == best[:, -2]).nonzero()[:, 0].tolist():
            num_above = int((best[row] > best[row, -1]).sum())
            equals = (values[row] == best[row, -1]).nonzero()[:, 0]
            ids[row, num_above:count] = equals[: count - num_above]
    return best[:, :count], ids[:, :count]


def _by_block(values: Tensor) -> Tensor:
    num_rows, width = values.shape
    return values.view(num_rows, width // BLOCK_TOKENS, BLOCK_TOKENS)
