"""The interface of a sequence that a runner needs. Needs no torch."""

from __future__ import annotations

from typing import Protocol


class BatchEntry(Protocol):
    """One sequence of a batch, in a slot of the cache; only the runner sets ``num_cached``."""

    ids: list[int]
    num_cached: int

    @property
    def slot(self) -> int:
        """Its slot of the cache."""
        ...
