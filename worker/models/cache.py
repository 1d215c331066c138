"""The key-value cache: one slot a sequence, memory only where tokens stand.

Knows nothing of attention or of who owns a slot.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from worker.models.errors import ModelUnusable

LIVE_BLOCK_TOKENS = 64  # attention reads whole blocks of positions; see ``Decoder`` for the reason
# Slots a power of two apart would fall on the same sets of the processor's caches.
_SKEW_TOKENS = 16
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on


class SlotCache:
    """Keys and values, each (slots, kv heads, capacity, head_dim) a layer, in the model's type.

    Every slot has room for a whole context, but a page becomes resident only when a token is
    written to it: 64 short texts of SmolLM2 take 300 MB, while a block that is filled up to the
    context's end would be 25 GB. Nothing is copied when a text grows, and rows join and leave
    without touching each other's. Huge pages are refused, because the first write to each head's
    region would claim 2 MiB.
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
    ) -> None:
        """Reserve addresses; no memory is used yet."""
        blocks = -(-context_length // LIVE_BLOCK_TOKENS)
        self.capacity = blocks * LIVE_BLOCK_TOKENS + _SKEW_TOKENS
        self._regions: list[mmap.mmap] = []
        shape = (num_slots, num_kv_heads, self.capacity, head_dim)
        self.keys = [self._reserve(shape, dtype) for _ in range(num_layers)]
        self.values = [self._reserve(shape, dtype) for _ in range(num_layers)]

    def give_back(self) -> None:
        """Return all memory; every position reads as zero again."""
        for region in self._regions:
            region.madvise(mmap.MADV_DONTNEED)

    def wipe(self, slot: int, num_positions: int) -> None:
        """Zero what may be NaN: even where it is masked it would spoil a weighted sum."""
        for block in (*self.keys, *self.values):
            block[slot, :, :num_positions].zero_()

    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if not hasattr(mmap, "MADV_NOHUGEPAGE"):  # not Linux: calloc is lazy too
            return torch.zeros(shape, dtype=dtype)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            region = mmap.mmap(-1, num_bytes, flags=flags)
        except OSError as error:
            raise ModelUnusable(
                f"The system refuses {num_bytes >> 20} MiB of addresses for the key-value cache of"
                f" {shape[0]} slots; lower TEXTMILL_SLOTS."
            ) from error
        region.madvise(mmap.MADV_NOHUGEPAGE)
        self._regions.append(region)
        return torch.frombuffer(region, dtype=dtype).view(shape)
