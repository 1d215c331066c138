"""What a runner needs of a text. Needs no torch."""

from __future__ import annotations

from typing import Protocol


class BatchEntry(Protocol):
    """A text in a slot of the cache; only the runner moves ``num_cached``."""

    ids: list[int]
    num_cached: int

    @property
    def slot(self) -> int:
        """Its place in the cache."""
        ...
