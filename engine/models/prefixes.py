"""Prompts whose keys and values are kept, so that the same beginning is computed once.

Knows nothing of slots or of engines. Used by the engine's thread alone.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the order of prompts is decided without torch
    from textmill.engine.models.cache import Snapshot

MIN_PREFIX_TOKENS = 16  # below this, to look for it costs more than to compute it


class PrefixCache:
    """The most recently used prefixes, within a bound in bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Start empty."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Snapshot] = OrderedDict()  # by packed ids, oldest first
        self.num_bytes = 0
        self.num_hits = 0

    def add(self, ids: Sequence[int], snapshot: Snapshot) -> None:
        """Keep a prefix; what it contains is dropped, and the oldest make room."""
        key = packed(ids)
        if snapshot.num_bytes > self._max_bytes or key in self._entries:
            return
        for shorter in [known for known in self._entries if key.startswith(known)]:
            self._drop(shorter)
        self._entries[key] = snapshot
        self.num_bytes += snapshot.num_bytes
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether all of these tokens stand at the beginning of something kept."""
        key = packed(ids)
        return any(known.startswith(key) for known in self._entries)

    def longest(self, ids: Sequence[int]) -> tuple[Snapshot | None, int]:
        """What shares the longest beginning with these tokens, and how many tokens that is."""
        key = packed(ids)
        best, length = None, 0
        for known in self._entries:
            shared = shared_length(key, known)
            if shared > length:
                best, length = known, shared
        if best is None:
            return None, 0
        self._entries.move_to_end(best)
        return self._entries[best], length

    def _drop(self, key: bytes) -> None:
        self.num_bytes -= self._entries.pop(key).num_bytes


def shared_length(first: bytes, second: bytes) -> int:
    """How many tokens two packed texts have in common at the beginning."""
    low, high = 0, min(len(first), len(second)) // 4
    while low < high:
        middle = (low + high + 1) // 2
        if first[: middle * 4] == second[: middle * 4]:
            low = middle
        else:
            high = middle - 1
    return low


def num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """As ``shared_length``, of ids."""
    return shared_length(packed(first), packed(second))


def packed(ids: Sequence[int]) -> bytes:
    """Ids as they are compared here."""
    return array("i", ids).tobytes()
