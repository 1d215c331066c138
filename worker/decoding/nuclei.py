"""The smallest sets of tokens that hold a given share of the probability.

A row's set is found without sorting the row. First a bound is chosen below which no token of the
set is expected; what is left is counted into bins by its order, which finds the bin where the share
is reached; only that bin is sorted. What a bound left out is noticed, and the row done again with
a lower one. Knows nothing of the strategies that want such sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.decoding.blocks import chunks

# Every 64th token tells what share the unlikely ones hold together, to a tenth or so where there
# are many of them; small vocabularies are taken whole.
SAMPLE_STRIDE = 64
MIN_SAMPLE_TOKENS = 64
# How much of the share that may be left out the sample may promise to the tokens below the bound,
# and how many of the sample must lie above: a few likely tokens are easily missed by it.
SAMPLE_SHARE = 0.6
MIN_SAMPLED_ABOVE = 16
# A float's exponent and its first bits number its bin: a quarter of an octave in the sample, a
# 64th in the search. 2**23 floats make an octave.
SAMPLE_SHIFT = 21
SAMPLE_BINS = 128
BIN_SHIFT = 17
BINS = 2048  # 32 octaves: a token 2**32 times less likely than another matters to no share


@dataclass(frozen=True, slots=True)
class Nuclei:
    """Where sets end.

    Attributes:
        last: (rows, 1) float32, the order of the last token in the set.
        surplus: (rows, ids) of tokens of that order that are beyond the set; two of (n,) int64.
    """

    last: Tensor
    surplus: tuple[Tensor, Tensor]


def closeness(weights: Tensor, centres: Tensor | None) -> Tensor:
    """The order in which tokens enter a set: the likeliest first, or the nearest to a centre.

    As a ratio the distance between logarithms needs none.

    Args:
        weights: (rows, n) float32.
        centres: (rows, 1) float32, or ``None`` for the likeliest first.

    Returns:
        (rows, n) float32, not negative, larger is earlier.
    """
    return weights if centres is None else torch.minimum(weights / centres, centres / weights)


def nuclei(weights: Tensor, shares: Tensor, centres: Tensor | None = None) -> Nuclei:
    """The first tokens of each row by ``closeness`` that hold its share; of equals the lower ids.

    Args:
        weights: (rows, width) float32, each row's sum is 1; an even width.
        shares: (rows, 1) float64, each above 0 and below 1.
        centres: see ``closeness``.
    """
    last = torch.zeros(len(weights), 1)
    surplus = [(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))]
    pending = torch.arange(len(weights))
    for bounds in (_sampled_bounds, _safe_bounds, _no_bounds):
        everything = len(pending) == len(weights)
        own = weights if everything else weights[pending]
        middle = None if centres is None else centres[pending]
        bound = bounds(own, shares[pending])
        if middle is not None:
            bound = torch.minimum(bound, middle / 2)
        found, beyond = _search(own, bound, shares[pending], middle)
        is_sure = (found > closeness(bound, middle))[:, 0] | (bound == 0)[:, 0]
        last[pending[is_sure]] = found[is_sure]
        counted = is_sure[beyond[0]]
        surplus.append((pending[beyond[0][counted]], beyond[1][counted]))
        pending = pending[~is_sure]
        if not len(pending):
            break
    rows, ids = zip(*surplus, strict=True)
    return Nuclei(last, (torch.cat(rows), torch.cat(ids)))


def _no_bounds(_: Tensor, shares: Tensor) -> Tensor:
    return torch.zeros(len(shares), 1)


def _safe_bounds(weights: Tensor, shares: Tensor) -> Tensor:
    """Tokens below it hold less than what may be left out, if there were nothing else."""
    return ((1 - shares) / weights.shape[-1] * 0.99).float()


def _sampled_bounds(weights: Tensor, shares: Tensor) -> Tensor:
    """Some octaves above the safe bound, as far as a sample of the row allows."""
    bound = _safe_bounds(weights, shares)
    sample = weights[:, ::SAMPLE_STRIDE].contiguous()
    if sample.shape[-1] < MIN_SAMPLE_TOKENS:
        return bound
    one = _bits(torch.ones(())) >> SAMPLE_SHIFT
    bins = ((_bits(sample / bound) >> SAMPLE_SHIFT) - one).clamp_(0, SAMPLE_BINS - 1).long()
    counts = torch.zeros(len(weights), SAMPLE_BINS).scatter_add_(-1, bins, torch.ones_like(sample))
    masses = torch.zeros(len(weights), SAMPLE_BINS).scatter_add_(-1, bins, sample)
    below = masses.cumsum(-1) * SAMPLE_STRIDE
    is_low = (below <= (1 - shares) * SAMPLE_SHARE) & (
        sample.shape[-1] - counts.cumsum(-1) >= MIN_SAMPLED_ABOVE
    )
    steps = is_low.sum(-1, keepdim=True, dtype=torch.int32)
    return ((steps + one) << SAMPLE_SHIFT).view(torch.float32) * bound


def _search(
    weights: Tensor, bound: Tensor, shares: Tensor, centres: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Where each row's share is reached among its tokens above a bound.

    Returns:
        last (rows, 1), zero where they do not hold the share, and surplus, as in ``Nuclei``.
    """
    places, masses = _above(weights, bound)
    order = closeness(masses, centres)
    bits = _bits(order) >> BIN_SHIFT
    bins = (bits.amax(-1, keepdim=True) - bits).clamp_(max=BINS - 1)
    doubles = masses.double()
    held = torch.zeros(len(weights), BINS, dtype=torch.float64)
    held = held.scatter_add_(-1, bins.long(), doubles).cumsum_(-1)
    crossing = torch.searchsorted(held, shares).clamp_(max=BINS - 1)
    before = torch.where(crossing > 0, held.gather(-1, (crossing - 1).clamp_(min=0)), 0.0)

    columns = _padded((bins == crossing).view(-1).nonzero()[:, 0], len(weights), bins.shape[-1])
    own = order.gather(-1, columns.index).masked_fill_(~columns.is_filled, -1.0)
    own, by_order = own.sort(dim=-1, descending=True, stable=True)
    columns_sorted = columns.index.gather(-1, by_order)
    mass = doubles.gather(-1, columns_sorted).mul_(own >= 0).cumsum(-1) + before
    count = columns.is_filled.sum(-1, keepdim=True)
    at = torch.minimum((mass < shares).sum(-1, keepdim=True), count - 1)
    is_reached = held[:, -1:] >= shares
    last = torch.where(is_reached, own.gather(-1, at), 0.0)
    is_beyond = (own == last) & (torch.arange(own.shape[-1]) > at) & is_reached
    rows, cells = is_beyond.nonzero(as_tuple=True)
    found = columns_sorted[rows, cells]
    return last, (rows, places[rows, found // 2] * 2 + found % 2)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What was found in each row of a matrix, side by side; (rows, most found in a row)."""

    index: Tensor  # int64; some column where nothing is left
    is_filled: Tensor  # bool


def _padded(cells: Tensor, num_rows: int, width: int) -> _Columns:
    """Cells of a matrix, as columns row by row.

    Args:
        cells: (n,) int64, ascending: row * width + column.
        num_rows: of the matrix.
        width: of the matrix.
    """
    edges = torch.searchsorted(cells, torch.arange(num_rows + 1) * width)
    counts = edges.diff()
    place = torch.arange(max(1, int(counts.max())))
    index = cells[(edges[:-1, None] + place).clamp_(max=max(0, len(cells) - 1))]
    index -= torch.arange(num_rows)[:, None] * width
    return _Columns(index.clamp_(0, width - 1), place < counts[:, None])


def _above(weights: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens above a bound, and perhaps others; two at a time, for each is a long search.

    Returns:
        places (rows, n) int64, half of the even id of each pair, and
        weights (rows, 2 * n) float32, zero where nothing is left.
    """
    half = weights.shape[-1] // 2
    found = []
    for own in chunks(weights):
        excess = (weights[own] - bound[own]).clamp_(min=0.0)
        cells = excess.view(torch.int64).view(-1).nonzero()[:, 0]
        found.append(cells.add_(own.start * half))
    columns = _padded(torch.cat(found), len(weights), half)
    pairs = weights.view(torch.int64).gather(-1, columns.index)
    return columns.index, pairs.mul_(columns.is_filled).view(torch.float32)


def _bits(values: Tensor) -> Tensor:
    """Floats that are not negative, as integers of the same order; int32."""
    return values.view(torch.int32)
