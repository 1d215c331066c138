"""The key-value cache: one slot for each sequence, with memory only for its tokens.

Knows nothing of attention or of the owners of slots.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from textmill.engine.models.errors import ModelUnusable

KV_BLOCK_TOKENS = 64  # attention reads whole blocks of positions; see ``decoder`` for the reason
# At a distance of a power of two, slots would share the same sets of the processor's caches.
_SKEW_TOKENS = 16
_HOST = torch.device("cpu")
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A copy of the keys and values of a slot's first positions."""

    keys: Tensor
    values: Tensor

    @property
    def num_bytes(self) -> int:
        """Its size in bytes."""
        return self.keys.nbytes + self.values.nbytes


class SlotCache:
    """Keys and values, each (layers, slots, kv heads, capacity, head_dim).

    Every slot has addresses for a whole context, but a page becomes resident only when a token is
    written to it: 64 short sequences of SmolLM2 take 300 MB, while the whole cache would take 25
    GB. Nothing is copied when a sequence grows, and sequences join and leave without touching other
    slots. Huge pages are disabled, because the first write to each head's region would take 2 MiB.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_kv_heads: int,
        head_dim: int,
        context_length: int,
        dtype: torch.dtype,
        block_tokens: int = 1,
        device: torch.device = _HOST,
    ) -> None:
        """Reserve addresses. Memory is used later, except on a GPU, which allocates at once.

        Positions may be stored in blocks of ``block_tokens``, with the reader's own inner order.
        """
        blocks = -(-context_length // KV_BLOCK_TOKENS)
        self.capacity = blocks * KV_BLOCK_TOKENS + _SKEW_TOKENS
        self.bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize
        self._block_tokens = block_tokens
        self._head_dim = head_dim
        self._device = device
        self._regions: list[mmap.mmap] = []
        shape = (num_layers, num_slots, num_kv_heads, self.capacity, head_dim)
        self.keys = self._reserve(shape, dtype)
        self.values = self._reserve(shape, dtype)

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
            self._blocks_of(numbers, slot, 0, num_positions).zero_()

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the positions from ``start`` to before ``end`` from one slot to another."""
        self._require(source, target)
        for numbers in (self.keys, self.values):
            copied = self._blocks_of(numbers, source, start, end)
            self._blocks_of(numbers, target, start, end).copy_(copied)

    def snapshot(self, slot: int, num_positions: int) -> Snapshot:
        """Copy a slot's first positions."""
        self._require(slot)
        parts = (self.keys, self.values)
        return Snapshot(*(self._blocks_of(p, slot, 0, num_positions).clone() for p in parts))

    def restore(self, slot: int, snapshot: Snapshot, num_positions: int) -> None:
        """Copy the first positions of a snapshot into a slot."""
        self._require(slot)
        for numbers, copied in ((self.keys, snapshot.keys), (self.values, snapshot.values)):
            own = self._blocks_of(numbers, slot, 0, num_positions)
            own.copy_(copied[..., : own.shape[-1]])

    def _require(self, *slots: int) -> None:
        """Check slots: a larger index would be in the next layer, and -1 the last slot."""
        for slot in slots:
            if not 0 <= slot < self.keys.shape[1]:
                raise IndexError(
                    f"The cache has {self.keys.shape[1]} slots; there is no slot {slot}."
                )

    def _blocks_of(self, numbers: Tensor, slot: int, start: int, end: int) -> Tensor:
        """A view (layers, kv heads, numbers) of whole blocks."""
        first = start // self._block_tokens * self._block_tokens
        last = -(-end // self._block_tokens) * self._block_tokens
        flat = numbers[:, slot].flatten(-2)
        return flat[..., first * self._head_dim : last * self._head_dim]

    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        is_host = self._device.type == "cpu"
        if not is_host or not hasattr(mmap, "MADV_NOHUGEPAGE"):  # without Linux, calloc is lazy too
            return torch.zeros(shape, dtype=dtype, device=self._device)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            region = mmap.mmap(-1, num_bytes, flags=flags)
        except OSError as error:
            raise ModelUnusable(
                f"The system refuses {num_bytes >> 20} MiB of addresses for the key-value cache of"
                f" {shape[1]} slots. Lower TEXTMILL_SLOTS."
            ) from error
        region.madvise(mmap.MADV_NOHUGEPAGE)
        self._regions.append(region)
        return torch.frombuffer(region, dtype=dtype).view(shape)
