"""Feeds sequences to a decoder: prefill in chunks, then one token a step for all ready rows.

Knows nothing of strategies, texts or jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from worker.models.decoder import Decoder

# About a quarter of a second for SmolLM2 in float32 on two cores: running texts never stall for
# longer. Chunks start at multiples of this in every prompt, so that their bounds, and with them
# the last bits of what is kept, depend on the prompt alone.
PREFILL_CHUNK_TOKENS = 128


class Row(Protocol):
    """What a runner needs of a sequence; only the runner moves ``num_cached``."""

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

    def wipe(self, row: Row) -> None:
        """Leave nothing of a row whose arithmetic went wrong."""

    def rest(self) -> None:
        """No row is left: give back what was only needed for them."""


class NativeRunner:
    """Runs our own decoder."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def prefill(self, row: Row) -> None:
        """Take the next chunk of a prompt into the cache."""
        start = row.num_cached
        end = min(start + PREFILL_CHUNK_TOKENS, len(row.ids) - 1)
        tokens = torch.tensor([row.ids[start:end]])
        self._decoder.fill(tokens, torch.tensor([start]), torch.tensor([row.slot]))
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

    def wipe(self, row: Row) -> None:
        """Zero the row's keys and values."""
        self._decoder.cache.wipe(row.slot, len(row.ids))

    def rest(self) -> None:
        """Return the cache's memory to the system."""
        self._decoder.cache.give_back()
