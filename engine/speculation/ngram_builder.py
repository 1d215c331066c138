"""Builds a table of n-grams from training texts. Needs numpy, and no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from textmill.engine.speculation.ngram_table import (
    MAX_ENTRIES,
    MAX_ORDER,
    MULTIPLIER,
    WIDTH,
    NgramTable,
)

MAX_TOKENS = 20_000_000  # of all texts; counting them takes about 2 GB and half a minute
MIN_COUNT = 2  # contexts that occur once are seldom seen again
# A successor that was counted c times of n has the probability (c - d) / (n + d): counts of one or
# two promise too much (absolute discounting; Ney, Essen and Kneser 1994).
DISCOUNT = 0.5
Array = npt.NDArray[Any]


def build(
    texts: Iterable[Sequence[int]], vocabulary_size: int, max_entries: int = MAX_ENTRIES
) -> NgramTable:
    """Build the table of the contexts that foretell most tokens of the texts.

    Args:
        texts: token ids of each; no n-gram spans two. Those after ``MAX_TOKENS`` are not counted.
        vocabulary_size: of the model.
        max_entries: the limit on contexts.
    """
    ids, owners = _flatten(texts)
    parts = [_count(ids, owners, length) for length in range(1, MAX_ORDER + 1)]
    hashes, tokens, counts, totals = (np.concatenate(column) for column in zip(*parts, strict=True))
    best = np.sort(np.argsort(-counts[:, 0], kind="stable")[:max_entries])
    order = best[np.argsort(hashes[best], kind="stable")]
    first = np.unique(hashes[order], return_index=True)[1]  # of contexts with one hash, one
    kept = order[first]
    shares = np.where(counts > 0, (counts - DISCOUNT) / (totals[:, None] + DISCOUNT), 0)
    return NgramTable(
        vocabulary_size,
        MAX_ORDER,
        hashes[kept].astype("<u4").tobytes(),
        tokens[kept].astype("<u4").tobytes(),
        np.rint(shares[kept] * 255).astype("u1").tobytes(),
    )


def _flatten(texts: Iterable[Sequence[int]]) -> tuple[Array, Array]:
    """The ids of all texts, and the number of each id's text; both (tokens,)."""
    kept: list[Sequence[int]] = []
    num_tokens = 0
    for text in texts:
        if num_tokens + len(text) > MAX_TOKENS:
            break
        kept.append(text)
        num_tokens += len(text)
    ids = np.fromiter(chain.from_iterable(kept), np.uint32, num_tokens)
    owners = np.repeat(np.arange(len(kept)), [len(text) for text in kept])
    return ids, owners


def _count(ids: Array, owners: Array, length: int) -> tuple[Array, Array, Array, Array]:
    """Count the successors of all contexts of a length.

    Returns:
        hashes (contexts,) uint32, successors and counts (contexts, WIDTH), totals (contexts,).
    """
    num_places = max(0, len(ids) - length)
    code = np.full(num_places, length, np.uint32)
    for offset in range(length):
        code = code * np.uint32(MULTIPLIER) + ids[offset : offset + num_places] + np.uint32(1)
    code ^= code >> np.uint32(15)
    is_whole = owners[:num_places] == owners[length:]
    pairs = (code[is_whole].astype(np.uint64) << np.uint64(32)) | ids[length:][is_whole]
    pairs, counts = np.unique(pairs, return_counts=True)
    contexts, successors = pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)
    by_count = np.lexsort((successors, -counts, contexts))
    contexts, successors, counts = contexts[by_count], successors[by_count], counts[by_count]
    hashes, starts, sizes = np.unique(contexts, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, starts) if len(starts) else counts
    is_kept = totals >= MIN_COUNT
    hashes, starts, sizes, totals = (
        hashes[is_kept],
        starts[is_kept],
        sizes[is_kept],
        totals[is_kept],
    )
    tokens = np.zeros((len(hashes), WIDTH), np.uint64)
    own = np.zeros((len(hashes), WIDTH), np.int64)
    for place in range(WIDTH):
        has = sizes > place
        tokens[has, place] = successors[starts[has] + place]
        own[has, place] = counts[starts[has] + place]
    return hashes.astype(np.uint32), tokens, own, totals
