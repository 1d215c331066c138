"""Feeds sequences to a decoder: prefill in chunks, then one token of each in a step.

Knows nothing of strategies, text or jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.cache import SlotCache
from textmill.engine.models.decoder import Decoder
from textmill.engine.models.native_runtime import MAX_STEP_TOKENS, NativeDecoder
from textmill.engine.models.prefixes import MIN_PREFIX_TOKENS, PrefixCache
from textmill.engine.sampling.native_sampler import SampleKernel

# About a quarter of a second for SmolLM2 in float32 on two cores: running sequences never stall for
# longer. Chunks start at multiples of this in every prompt, so that their bounds, and with them the
# last bits of cached keys and values, depend on the prompt alone.
PREFILL_CHUNK_TOKENS = 128
# A step of the kernels takes as long for twelve tokens as two steps for one token each; from there
# on its time is proportional to tokens.
MIN_CHUNK_TOKENS = 12


class ModelRunner(Protocol):
    """Computes logits for sequences that keep their slots from step to step."""

    bytes_per_token: int  # of the key-value cache
    is_ragged: bool  # whether a step may contain chunks of several prompts, cut anywhere

    def chunk_tokens(self, num_decoding: int) -> int:
        """The number of prompt tokens to compute between two steps of ``num_decoding`` entries."""
        ...

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Compute each entry's tokens up to the given position into the cache."""

    def decode(self, entries: Sequence[BatchEntry]) -> Tensor:
        """Logits (entries, vocabulary) float32 after the last token of each entry."""
        ...

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after each token of ``ids``; overwrites a slot."""
        ...

    def log_softmax(self, logits: Tensor) -> Tensor:
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

    def log_softmax(self, logits: Tensor) -> Tensor:
        """The logarithms of the probabilities, (rows, vocabulary) float32, of such logits."""
        return torch.log_softmax(logits, -1)

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


class TorchRunner(SlotRunner):
    """Runs the decoder in PyTorch."""

    is_ragged = False

    def __init__(self, decoder: Decoder, *, prefix_bytes: int) -> None:
        super().__init__(decoder.cache, prefix_bytes=prefix_bytes, granularity=PREFILL_CHUNK_TOKENS)
        self._decoder = decoder
        self._ready: dict[int, tuple[int, Tensor]] = {}  # a prompt's length and logits, by slot

    def chunk_tokens(self, num_decoding: int) -> int:
        """The number of prompt tokens to compute between two steps."""
        return PREFILL_CHUNK_TOKENS

    def recall(self, entry: BatchEntry) -> None:
        """Copy a known prefix of the entry's prompt into its slot.

        A prompt that is computed in one chunk is not split into a known prefix and a last token: in
        bfloat16 its last bits would differ.
        """
        if not (self._decoder.is_mirror and len(entry.ids) - 1 <= PREFILL_CHUNK_TOKENS):
            super().recall(entry)

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Compute each entry's tokens up to the given position into the cache."""
        for entry, end in chunks:
            if end <= entry.num_cached:
                continue
            places = torch.tensor([entry.num_cached]), torch.tensor([entry.slot])
            if self._decoder.is_mirror and entry.num_cached == 0 and end == len(entry.ids) - 1:
                # transformers computes a prompt's last token together with the others.
                logits = self._decoder.forward(torch.tensor([entry.ids]), *places)
                self._ready[entry.slot] = len(entry.ids), logits
            else:
                self._decoder.fill(torch.tensor([entry.ids[entry.num_cached : end]]), *places)
            entry.num_cached = end

    def decode(self, entries: Sequence[BatchEntry]) -> Tensor:
        """Logits (entries, vocabulary) float32 after the last token of each entry."""
        found = {
            i: logits
            for i, entry in enumerate(entries)
            if (logits := self._pop_ready(entry)) is not None
        }
        others = [entry for i, entry in enumerate(entries) if i not in found]
        if not found:
            return self._decode(others)
        computed = iter(self._decode(others).split(1) if others else ())
        return torch.cat([found[i] if i in found else next(computed) for i in range(len(entries))])

    def _pop_ready(self, entry: BatchEntry) -> Tensor | None:
        num_tokens, logits = self._ready.pop(entry.slot, (0, None))
        if num_tokens != len(entry.ids):
            return None
        entry.num_cached = num_tokens
        return logits

    def _decode(self, entries: Sequence[BatchEntry]) -> Tensor:
        tokens = torch.tensor([[entry.ids[-1]] for entry in entries])
        positions = torch.tensor([len(entry.ids) - 1 for entry in entries])
        slots = torch.tensor([entry.slot for entry in entries])
        logits = self._decoder.forward(tokens, positions, slots)
        for entry in entries:
            entry.num_cached = len(entry.ids)
        return logits

    def release(self, slot: int) -> None:
        """Return a slot's memory to the system."""
        self._ready.pop(slot, None)
        super().release(slot)

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after each token of ``ids``; overwrites a slot."""
        places = torch.tensor([0]), torch.tensor([slot])
        return self._decoder.forward_everywhere(torch.tensor([ids]), *places)[0]


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

    def decode(self, entries: Sequence[BatchEntry]) -> Tensor:
        """Logits (entries, vocabulary) float32 after the last token of each entry."""
        return self.verify(entries, [()] * len(entries))

    def verify(self, entries: Sequence[BatchEntry], drafts: Sequence[Sequence[int]]) -> Tensor:
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

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after each token of ``ids``; overwrites a slot."""
        places = range(len(ids))
        return self._decoder.forward(ids, places, [slot] * len(ids), places).clone()

    def log_softmax(self, logits: Tensor) -> Tensor:
        """``torch.log_softmax``, with the same bits on every processor."""
        return self._decoder.log_softmax(logits)

    @property
    def sample(self) -> SampleKernel:
        """The kernel that samples tokens."""
        return self._decoder.sample

    def seconds(self) -> dict[str, float]:
        """Seconds spent since the start, by phase of a step."""
        return self._decoder.seconds()
