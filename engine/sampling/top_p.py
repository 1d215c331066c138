"""The smallest sets of tokens whose probabilities add up to a given share.

A row's set is found without sorting the row. The weights are summed in bins by the order in which
tokens enter the set. The sums identify the bin in which the share is reached, and only that bin is
sorted. Knows nothing of the strategies that use such sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.engine.sampling.blocks import sums

# The first bits of a float are the number of its bin: the exponent, and five more bits, which
# divide an octave into 32 bins. A bin of a usual row then holds some ten to a hundred tokens.
BIN_SHIFT = 18
NUM_BINS = 1 << (30 - BIN_SHIFT)  # all floats from 0 to below 2


def keep_top_p(weights: Tensor, order: Tensor, shares: Tensor) -> Tensor:
    """Keep the first tokens of each row by their order that add up to its share.

    Of tokens with equal order, those with lower ids are kept.

    Args:
        weights: (rows, a multiple of ``BLOCK_TOKENS``) float32; each row's sum is 1.
        order: like ``weights``, from 0 to 1; larger values are kept first.
        shares: (rows, 1) float64, each above 0 and below 1.

    Returns:
        ``weights`` with zeros outside of the sets, in new memory.
    """
    lowest, beyond = _bins(weights, order, shares)
    kept, is_sure = _kept(weights, order, shares, lowest, beyond)
    if not all(is_sure):
        # The sums of the bins are float32. They were too inexact for a share that is almost all or
        # almost nothing of a bin. Rare: the whole row is sorted.
        rows = torch.tensor([row for row, sure in enumerate(is_sure) if not sure])
        zeros = torch.zeros(len(rows), 1)
        kept[rows], _ = _kept(weights[rows], order[rows], shares[rows], zeros, zeros + torch.inf)
    return kept


def _bins(weights: Tensor, order: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of the bins in which the shares are reached: included, and excluded."""
    bins = (order.view(torch.int32) >> BIN_SHIFT).long()
    held = torch.zeros(len(order), NUM_BINS).scatter_add_(-1, bins, weights)
    place = torch.searchsorted(held.flip(-1).cumsum(-1, dtype=torch.float64), shares)
    crossing = (NUM_BINS - 1 - place).clamp_(min=0).int()
    bounds = [(edge << BIN_SHIFT).view(torch.float32) for edge in (crossing, crossing + 1)]
    return bounds[0], bounds[1]


def _kept(
    weights: Tensor, order: Tensor, shares: Tensor, lowest: Tensor, beyond: Tensor
) -> tuple[Tensor, list[bool]]:
    """Keep the tokens above a bin, and as many tokens of the bin as are needed.

    Returns:
        the kept weights, and whether each row's share is reached within the bin.
    """
    kept = torch.ge(order, beyond, out=torch.empty_like(order))
    inside = torch.ge(order, lowest, out=torch.empty_like(order)).sub_(kept)
    kept.mul_(weights)
    before = sums(kept).cumsum(-1, dtype=torch.float64)[:, -1:]

    index, is_filled = _by_row(_cells(inside), *order.shape)
    own = order.view(-1).take(index).masked_fill_(~is_filled, -1.0)
    by_order = own.sort(dim=-1, descending=True, stable=True).indices
    index, is_filled = index.gather(-1, by_order), is_filled.gather(-1, by_order)
    found = weights.view(-1).take(index)
    mass = (found.double() * is_filled).cumsum(-1).add_(before)
    is_wanted = is_filled & (torch.arange(index.shape[-1]) <= (mass < shares).sum(-1, keepdim=True))
    kept.view(-1)[index[is_wanted]] = found[is_wanted]
    is_sure = (before < shares) & ((mass[:, -1:] >= shares) | (lowest == 0))
    return kept, is_sure[:, 0].tolist()


def _cells(flags: Tensor) -> Tensor:
    """The cells of a matrix of few ones and many zeros that are one: (n,) row * width + column.

    Eight cells are tested at once: the time of ``nonzero`` depends on the size of its input.
    """
    octets = flags.to(torch.int8).view(-1, 8)
    found = octets.view(torch.int64)[:, 0].nonzero()[:, 0]
    which, place = octets.index_select(0, found).nonzero(as_tuple=True)
    return found.index_select(0, which).mul_(8).add_(place)


def _by_row(cells: Tensor, num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Arrange cells of a matrix by their rows.

    Args:
        cells: (n,) int64, ascending: row * width + column.
        num_rows: of the matrix.
        width: of the matrix.

    Returns:
        cells (rows, most in a row) int64, and (rows, most in a row) bool, false for the padding of
        rows with fewer cells, which contains arbitrary cells.
    """
    edges = torch.searchsorted(cells, torch.arange(num_rows + 1) * width)
    place = edges[:-1, None] + torch.arange(max(1, int(edges.diff().max())))
    is_filled = place < edges[1:, None]
    if not len(cells):
        return torch.zeros_like(place), is_filled
    return cells.take(place.clamp_(max=len(cells) - 1)), is_filled
