"""Feeds sequences to a decoder: prefill in chunks, then one token a step for all ready rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from worker.models.decoder import Decoder

PREFILL_CHUNK_TOKENS = 256  # about as long as a few decode steps, so that running texts never stall


class Row(Protocol):
    """What a runner needs of a sequence."""

    ids: list[int]
    num_cached: int
    slot: int


class Runner(Protocol):
    """Computes logits for sequences that keep their slot from step to step."""

    def prefill(self, row: Row) -> None:
        """Take the next chunk of a prompt into the cache; all but its last token in the end."""

    def decode(self, rows: Sequence[Row]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        ...

    def rest(self) -> None:
        """No row is left: give back what was only needed for them."""


class NativeRunner:
    """Runs our own decoder."""

    def __init__(self, decoder: Decoder) -> None:
        """Keep the decoder."""
        self._decoder = decoder

    def prefill(self, row: Row) -> None:
        """Take the next chunk of a prompt into the cache."""
        start = row.num_cached
        end = min(start + PREFILL_CHUNK_TOKENS, len(row.ids) - 1)
        tokens = torch.tensor([row.ids[start:end]])
        self._decoder.forward(tokens, torch.tensor([start]), torch.tensor([row.slot]))
        row.num_cached = end

    def decode(self, rows: Sequence[Row]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        tokens = torch.tensor([[row.ids[-1]] for row in rows])
        positions = torch.tensor([len(row.ids) - 1 for row in rows])
        slots = torch.tensor([row.slot for row in rows])
        logits = self._decoder.forward(tokens, positions, slots)
        for row in rows:
            row.num_cached = len(row.ids)
        return logits

    def rest(self) -> None:
        """Shrink the cache to its smallest."""
        self._decoder.cache.reset()
