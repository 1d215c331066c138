"""The key-value cache: one slot for each sequence, with memory only for its tokens.

Knows nothing of attention or of the owners of slots. Needs no torch: ``tensor_cache`` keeps the
same as tensors.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from textmill.engine.models.errors import ModelUnusable

KV_BLOCK_TOKENS = 64  # attention reads whole blocks of positions; see ``decoder`` for the reason
# At a distance of a power of two, slots would share the same sets of the processor's caches.
_SKEW_TOKENS = 16
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A copy of the keys and values of a slot's first positions."""

    keys: Any
    values: Any

    @property
    def num_bytes(self) -> int:
        """Its size in bytes."""
        return int(self.keys.nbytes + self.values.nbytes)


class SlotCache:
    """Keys and values, each (layers, slots, kv heads, capacity, head_dim).

    Every slot has addresses for a whole context, but a page becomes resident only when a token is
    written to it. A token of SmolLM2 takes 12 KB in int8: 64 sequences of 256 tokens take 200 MB,
    while the whole cache would take 6.4 GB. Nothing is copied when a sequence grows, and sequences
    join and leave without touching other slots. Huge pages are disabled, because the first write
    to each head's region would take 2 MiB.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_kv_heads: int,
        head_dim: int,
        context_length: int,
        number_bytes: int,
        block_tokens: int = 1,
    ) -> None:
        """Reserve addresses. Memory is used later.

        Positions may be stored in blocks of ``block_tokens``, with the reader's own inner order.

        Raises:
            ModelUnusable: the system refuses so many addresses.
        """
        blocks = -(-context_length // KV_BLOCK_TOKENS)
        self.capacity = blocks * KV_BLOCK_TOKENS + _SKEW_TOKENS
        self.is_int8 = number_bytes == 1
        self.bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * number_bytes
        self._block_tokens = block_tokens
        self._head_dim = head_dim
        self._regions: list[mmap.mmap] = []
        shape = (num_layers, num_slots, num_kv_heads, self.capacity, head_dim)
        self.keys: Any = self._reserve(shape)
        self.values: Any = self._reserve(shape)

    def release_all(self) -> None:
        """Return all memory to the system; every position reads as zero again."""
        for region in self._regions:
            region.madvise(mmap.MADV_DONTNEED)

    def release(self, slot: int) -> None:
        """Return a slot's memory to the system, except pages that it shares with other slots."""
        self._require(slot)
        num_layers, num_slots = self.keys.shape[:2]
        size = self.keys[0, 0].nbytes
        for region in self._regions:
            for layer in range(num_layers):
                start = (layer * num_slots + slot) * size
                first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
                last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
                if last > first:
                    region.madvise(mmap.MADV_DONTNEED, first, last - first)

    def wipe(self, slot: int, num_positions: int) -> None:
        """Zero positions that may contain NaN, which makes a weighted sum NaN even where masked."""
        self._require(slot)
        for numbers in (self.keys, self.values):
            self._blocks_of(numbers, slot, 0, num_positions)[...] = 0

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the positions from ``start`` to before ``end`` from one slot to another."""
        self._require(source, target)
        for numbers in (self.keys, self.values):
            copied = self._blocks_of(numbers, source, start, end)
            self._blocks_of(numbers, target, start, end)[...] = copied

    def snapshot(self, slot: int, num_positions: int) -> Snapshot:
        """Copy a slot's first positions."""
        self._require(slot)
        parts = (self.keys, self.values)
        return Snapshot(*(self._copy(self._blocks_of(p, slot, 0, num_positions)) for p in parts))

    def restore(self, slot: int, snapshot: Snapshot, num_positions: int) -> None:
        """Copy the first positions of a snapshot into a slot."""
        self._require(slot)
        for numbers, copied in ((self.keys, snapshot.keys), (self.values, snapshot.values)):
            own = self._blocks_of(numbers, slot, 0, num_positions)
            own[...] = copied[..., : own.shape[-1]]

    def _require(self, *slots: int) -> None:
        """Check slots: a larger index would be in the next layer, and -1 the last slot."""
        for slot in slots:
            if not 0 <= slot < self.keys.shape[1]:
                raise IndexError(
                    f"The cache has {self.keys.shape[1]} slots; there is no slot {slot}."
                )

    def _blocks_of(self, numbers: Any, slot: int, start: int, end: int) -> Any:
        """A view (layers, kv heads, numbers) of whole blocks."""
        first = start // self._block_tokens * self._block_tokens
        last = -(-end // self._block_tokens) * self._block_tokens
        own = numbers[:, slot]
        flat = own.reshape(*own.shape[:-2], -1)  # a view: a head's positions are contiguous
        return flat[..., first * self._head_dim : last * self._head_dim]

    def _copy(self, numbers: Any) -> Any:
        return numbers.copy()

    def _reserve(self, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(np.int8 if self.is_int8 else np.float32)
        region = self._reserved(math.prod(shape) * dtype.itemsize, shape[1])
        if region is None:
            return np.zeros(shape, dtype)
        return np.frombuffer(region, dtype).reshape(shape)

    def _reserved(self, num_bytes: int, num_slots: int) -> mmap.mmap | None:
        """Addresses of zeros; ``None`` outside Linux, where calloc is lazy too."""
        if not hasattr(mmap, "MADV_NOHUGEPAGE"):
            return None
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            region = mmap.mmap(-1, num_bytes, flags=flags)
        except OSError as error:
            raise ModelUnusable(
                f"The system refuses {num_bytes >> 20} MiB of addresses for the key-value cache of"
                f" {num_slots} slots. Lower TEXTMILL_SLOTS."
            ) from error
        region.madvise(mmap.MADV_NOHUGEPAGE)
        self._regions.append(region)
        return region
