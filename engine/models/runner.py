"""Feeds sequences to a decoder: prefill in chunks, then one token of each in a step.

Knows nothing of strategies, text or jobs. Needs no torch: ``torch_runner`` runs the decoder in
PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.cache import SlotCache
from textmill.engine.models.native_runtime import MAX_STEP_TOKENS, NativeDecoder
from textmill.engine.models.prefixes import MIN_PREFIX_TOKENS, PrefixCache
from textmill.engine.models.weights import Float32
from textmill.engine.sampling.native_sampler import SampleKernel

# About a quarter of a second for SmolLM2 in float32 on two cores: running sequences never stall for
# longer. Chunks start at multiples of this in every prompt, so that their bounds, and with them the
# last bits of cached keys and values, depend on the prompt alone.
PREFILL_CHUNK_TOKENS = 128
# A step of the kernels takes as long for twelve tokens as two steps for one token each; from there
# on its time is proportional to tokens.
MIN_CHUNK_TOKENS = 12


class ModelRunner(Protocol):
    """Computes logits for sequences that keep their slots from step to step.

    Logits are numpy arrays from the compiled kernels, and tensors from PyTorch.
    """

    bytes_per_token: int  # of the key-value cache
    is_ragged: bool  # whether a step may contain chunks of several prompts, cut anywhere

    def chunk_tokens(self, num_decoding: int) -> int:
        """The number of prompt tokens to compute between two steps of ``num_decoding`` entries."""
        ...

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Compute each entry's tokens up to the given position into the cache."""

    def decode(self, entries: Sequence[BatchEntry]) -> Any:
        """Logits (entries, vocabulary) float32 after the last token of each entry."""
        ...

    def score(self, ids: list[int], slot: int = 0) -> Any:
        """Logits (len(ids), vocabulary) float32 after each token of ``ids``; overwrites a slot."""
        ...

    def log_softmax(self, logits: Any) -> Float32:
        """The logarithms of the probabilities, (rows, vocabulary) float32, of such logits."""
        ...

    def recall(self, entry: BatchEntry) -> None:
        """Copy a known prefix of the entry's prompt into its slot."""

    def keep(self, entry: BatchEntry) -> None:
        """Keep a prompt that was just prefilled as a known prefix."""

    def fork(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the positions from ``start`` to before ``end`` from one slot to another."""

    def release(self, slot: int) -> None:
        """Return a slot's memory to the system."""

    def wipe(self, slot: int, num_positions: int) -> None:
        """Erase a sequence whose numbers are not finite."""

    def rest(self) -> None:
        """Release memory that only sequences need; called when there are none."""


class SlotRunner:
    """The common part of the two native runners: a cache of slots, and known prefixes."""

    def __init__(self, cache: SlotCache, *, prefix_bytes: int, granularity: int) -> None:
        """Create a runner; prefixes are shared in multiples of ``granularity`` tokens."""
        self.cache = cache
        self._granularity = granularity
        self.prefixes = PrefixCache(prefix_bytes)
        self.bytes_per_token = cache.bytes_per_token

    def recall(self, entry: BatchEntry) -> None:
        """Copy a known prefix of the entry's prompt into its slot."""
        wanted = len(entry.ids) - 1
        snapshot, length = self.prefixes.longest(entry.ids[:wanted])
        if length < wanted:
            length = length // self._granularity * self._granularity
        if snapshot is None or length < MIN_PREFIX_TOKENS:
            return
        self.cache.restore(entry.slot, snapshot, length)
        entry.num_cached = length
        self.prefixes.num_hits += 1

    def keep(self, entry: BatchEntry) -> None:
        """Keep a prompt that was just prefilled as a known prefix."""
        ids = entry.ids[: entry.num_cached]
        if len(ids) >= MIN_PREFIX_TOKENS and not self.prefixes.holds(ids):
            self.prefixes.add(ids, self.cache.snapshot(entry.slot, len(ids)))

    def fork(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the positions from ``start`` to before ``end`` from one slot to another."""
        self.cache.copy(source, target, start, end)

    def release(self, slot: int) -> None:
        """Return a slot's memory to the system."""
        self.cache.release(slot)

    def wipe(self, slot: int, num_positions: int) -> None:
        """Zero the slot's keys and values."""
        self.cache.wipe(slot, num_positions)

    def rest(self) -> None:
        """Return the cache's memory to the system; known prefixes are kept."""
        self.cache.release_all()


class KernelRunner(SlotRunner):
    """Runs the decoder in compiled kernels."""

    is_ragged = True

    def __init__(self, decoder: NativeDecoder, *, prefix_bytes: int) -> None:
        super().__init__(decoder.cache, prefix_bytes=prefix_bytes, granularity=1)
        self._decoder = decoder

    def chunk_tokens(self, num_decoding: int) -> int:
        """The number of prompt tokens to compute between two steps: about two steps' worth."""
        if num_decoding == 0:
            return MAX_STEP_TOKENS // 2  # a sequence may join before the prompt is complete
        return min(max(MIN_CHUNK_TOKENS, 2 * num_decoding), MAX_STEP_TOKENS)

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Compute all entries' tokens up to the given positions into the cache, in one step."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for entry, end in chunks:
            tokens += entry.ids[entry.num_cached : end]
            positions += range(entry.num_cached, end)
            slots += [entry.slot] * (end - entry.num_cached)
        self._decoder.forward(tokens, positions, slots, [])
        for entry, end in chunks:
            entry.num_cached = end

    def decode(self, entries: Sequence[BatchEntry]) -> Float32:
        """Logits (entries, vocabulary) float32 after the last token of each entry."""
        return self.verify(entries, [()] * len(entries))

    def verify(self, entries: Sequence[BatchEntry], drafts: Sequence[Sequence[int]]) -> Float32:
        """Logits after the last token of each entry and after each token of its draft.

        ``num_cached`` does not count drafted tokens, although their keys and values are in the
        cache: the caller adds those that it keeps, and the others are overwritten by later tokens.

        Args:
            entries: each with all tokens but the last in the cache.
            drafts: for each entry the tokens that may follow it, which fit into the context.

        Returns:
            (entries + drafted tokens, vocabulary) float32, entry by entry.
        """
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for entry, draft in zip(entries, drafts, strict=True):
            last = len(entry.ids) - 1
            tokens += (entry.ids[-1], *draft)
            positions += range(last, last + 1 + len(draft))
            slots += [entry.slot] * (1 + len(draft))
        logits = self._decoder.forward(tokens, positions, slots, range(len(tokens)))
        for entry in entries:
            entry.num_cached = len(entry.ids)
        return logits

    def score(self, ids: list[int], slot: int = 0) -> Float32:
        """Logits (len(ids), vocabulary) float32 after each token of ``ids``; overwrites a slot."""
        places = range(len(ids))
        return np.array(self._decoder.forward(ids, places, [slot] * len(ids), places))

    def log_softmax(self, logits: Any) -> Float32:
        """The logarithms of the probabilities, with the same bits on every processor."""
        return self._decoder.log_softmax(np.ascontiguousarray(logits))

    @property
    def sample(self) -> SampleKernel:
        """The kernel that samples tokens."""
        return self._decoder.sample

    def seconds(self) -> dict[str, float]:
        """Seconds spent since the start, by phase of a step."""
        return self._decoder.seconds()
