"""The smallest sets of tokens that hold a given share of the probability.

A row's set is found without sorting the row. The weights are added up in bins by the order in which
tokens enter the set, which tells the bin where the share is reached; only that bin is sorted. Knows
nothing of the strategies that want such sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.engine.sampling.blocks import sums

# The first bits of a float number its bin: the exponent, and five more that part an octave in 32.
# A bin of a usual row then holds some ten to a hundred tokens.
BIN_SHIFT = 18
NUM_BINS = 1 << (30 - BIN_SHIFT)  # all floats from 0 to below 2


def keep_nuclei(weights: Tensor, order: Tensor, shares: Tensor) -> Tensor:
    """Keep the first tokens of each row by their order that hold its share; of equals, lower ids.

    Args:
        weights: (rows, a multiple of ``BLOCK_TOKENS``) float32, each row's sum is 1.
        order: like ``weights``, from 0 to 1, larger is earlier.
        shares: (rows, 1) float64, each above 0 and below 1.

    Returns:
        ``weights``, but zero outside the sets; in new memory.
    """
    lowest, beyond = _bins(weights, order, shares)
    kept, is_sure = _kept(weights, order, shares, lowest, beyond)
    if not all(is_sure):
        # The bins are added up in float32, and the share was nearly all or nothing of one. Rare.
        rows = torch.tensor([row for row, sure in enumerate(is_sure) if not sure])
        nothing = torch.zeros(len(rows), 1)
        kept[rows], _ = _kept(
            weights[rows], order[rows], shares[rows], nothing, nothing + torch.inf
        )
    return kept


def _bins(weights: Tensor, order: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The bins in which the shares are reached: the order they begin with, and that of the next."""
    bins = (order.view(torch.int32) >> BIN_SHIFT).long()
    held = torch.zeros(len(order), NUM_BINS).scatter_add_(-1, bins, weights)
    place = torch.searchsorted(held.flip(-1).cumsum(-1, dtype=torch.float64), shares)
    crossing = (NUM_BINS - 1 - place).clamp_(min=0).int()
    first = [(edge << BIN_SHIFT).view(torch.float32) for edge in (crossing, crossing + 1)]
    return first[0], first[1]


def _kept(
    weights: Tensor, order: Tensor, shares: Tensor, lowest: Tensor, beyond: Tensor
) -> tuple[Tensor, list[bool]]:
    """Keep tokens above a bin, and within it as many as are needed.

    Returns:
        what is kept, like ``weights``, and whether each row's share is reached within the bin.
    """
    kept = torch.ge(order, beyond, out=torch.empty_like(order))
    inside = torch.ge(order, lowest, out=torch.empty_like(order)).sub_(kept)
    kept.mul_(weights)
    before = sums(kept).cumsum(-1, dtype=torch.float64)[:, -1:]

    index, is_filled = _side_by_side(_cells(inside), *order.shape)
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
    """Where a matrix of 0 and 1, few of them, is not zero; (n,) int64, row * width + column.

    Eight are looked at together: ``nonzero`` is slow by the number of what it looks at.
    """
    octets = flags.to(torch.int8).view(-1, 8)
    found = octets.view(torch.int64)[:, 0].nonzero()[:, 0]
    which, place = octets.index_select(0, found).nonzero(as_tuple=True)
    return found.index_select(0, which).mul_(8).add_(place)


def _side_by_side(cells: Tensor, num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Cells of a matrix, those of each row in a row.

    Args:
        cells: (n,) int64, ascending: row * width + column.
        num_rows: of the matrix.
        width: of the matrix.

    Returns:
        cells (rows, most in a row) int64, and (rows, most in a row) bool, false where a row has
        fewer and any cell stands.
    """
    edges = torch.searchsorted(cells, torch.arange(num_rows + 1) * width)
    place = edges[:-1, None] + torch.arange(max(1, int(edges.diff().max())))
    is_filled = place < edges[1:, None]
    if not len(cells):
        return torch.zeros_like(place), is_filled
    return cells.take(place.clamp_(max=len(cells) - 1)), is_filled
