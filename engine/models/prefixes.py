"""The prefix cache: keys and values of prompts, so that a shared prefix is computed once.

Knows nothing of slots or of engines. Used by the engine's thread only.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # engine.prefilling uses this module without torch
    from textmill.engine.models.cache import Snapshot

MIN_PREFIX_TOKENS = 16  # a shorter prefix is computed faster than it is found


class PrefixCache:
    """The most recently used prefixes, up to a limit in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Snapshot] = OrderedDict()  # by packed ids, oldest first
        self.num_bytes = 0
        self.num_hits = 0

    def add(self, ids: Sequence[int], snapshot: Snapshot) -> None:
        """Add a prefix. Drops shorter prefixes that it contains, and the oldest above the limit."""
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
        """Whether the tokens are a prefix of an entry."""
        key = packed(ids)
        return any(known.startswith(key) for known in self._entries)

    def longest(self, ids: Sequence[int]) -> tuple[Snapshot | None, int]:
        """The entry that shares the longest prefix with the tokens, and the prefix's length."""
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
    """The number of tokens in the common prefix of two packed sequences."""
    low, high = 0, min(len(first), len(second)) // 4
    while low < high:
        middle = (low + high + 1) // 2
        if first[: middle * 4] == second[: middle * 4]:
            low = middle
        else:
            high = middle - 1
    return low


def num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Like ``shared_length``, for ids."""
    return shared_length(packed(first), packed(second))


def packed(ids: Sequence[int]) -> bytes:
    """Pack ids into bytes, which compare faster."""
    return array("i", ids).tobytes()
