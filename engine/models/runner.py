"""Feeds sequences to a decoder: prefill in chunks, then one token a step for all ready rows.

Knows nothing of strategies, texts or jobs.
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

# About a quarter of a second for SmolLM2 in float32 on two cores: running texts never stall for
# longer. Chunks start at multiples of this in every prompt, so that their bounds, and with them
# the last bits of what is kept, depend on the prompt alone.
PREFILL_CHUNK_TOKENS = 128
# The kernels' step costs as much for twelve rows as for two single ones, and from there on by rows.
MIN_CHUNK_TOKENS = 12


class ModelRunner(Protocol):
    """Computes logits for texts that keep their slot from step to step."""

    bytes_per_token: int  # of the key-value cache
    is_ragged: bool  # whether chunks of several prompts go into one step, cut anywhere

    def chunk_tokens(self, num_decoding: int) -> int:
        """Prompt tokens to take between two steps of so many rows."""
        ...

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Take each row's tokens into the cache up to the place given."""

    def decode(self, rows: Sequence[BatchEntry]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        ...

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after every token of a text; fills a slot."""
        ...

    def recall(self, row: BatchEntry) -> None:
        """Take what is already known of a prompt's beginning into the row's slot."""

    def keep(self, row: BatchEntry) -> None:
        """Remember a prompt that was just prefilled."""

    def fork(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the positions from ``start`` to before ``end`` from one slot to another."""

    def release(self, slot: int) -> None:
        """Give a slot's memory back."""

    def wipe(self, slot: int, num_positions: int) -> None:
        """Leave nothing of a text whose arithmetic went wrong."""

    def rest(self) -> None:
        """No text is left: give back what was only needed for them."""


class SlotRunner:
    """What the two runners of our own have in common: a cache of slots, and known prefixes."""

    def __init__(self, cache: SlotCache, *, prefix_bytes: int, granularity: int) -> None:
        """Keep the cache; prefixes are shared in multiples of ``granularity`` tokens."""
        self.cache = cache
        self._granularity = granularity
        self.prefixes = PrefixCache(prefix_bytes)
        self.bytes_per_token = cache.bytes_per_token

    def recall(self, row: BatchEntry) -> None:
        """Take what is already known of a prompt's beginning into the row's slot."""
        wanted = len(row.ids) - 1
        snapshot, length = self.prefixes.longest(row.ids[:wanted])
        if length < wanted:
            length = length // self._granularity * self._granularity
        if snapshot is None or length < MIN_PREFIX_TOKENS:
            return
        self.cache.restore(row.slot, snapshot, length)
        row.num_cached = length
        self.prefixes.num_hits += 1

    def keep(self, row: BatchEntry) -> None:
        """Remember a prompt that was just prefilled."""
        ids = row.ids[: row.num_cached]
        if len(ids) >= MIN_PREFIX_TOKENS and not self.prefixes.holds(ids):
            self.prefixes.add(ids, self.cache.snapshot(row.slot, len(ids)))

    def fork(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the positions from ``start`` to before ``end`` from one slot to another."""
        self.cache.copy(source, target, start, end)

    def release(self, slot: int) -> None:
        """Give a slot's memory back."""
        self.cache.release(slot)

    def wipe(self, slot: int, num_positions: int) -> None:
        """Zero the text's keys and values."""
        self.cache.wipe(slot, num_positions)

    def rest(self) -> None:
        """Return the cache's memory to the system; known prefixes stay."""
        self.cache.give_back()


class TorchRunner(SlotRunner):
    """Runs our own decoder in PyTorch."""

    is_ragged = False

    def __init__(self, decoder: Decoder, *, prefix_bytes: int) -> None:
        """Keep the decoder."""
        super().__init__(decoder.cache, prefix_bytes=prefix_bytes, granularity=PREFILL_CHUNK_TOKENS)
        self._decoder = decoder
        self._ready: dict[int, tuple[int, Tensor]] = {}  # by slot, of a prompt: tokens and logits

    def chunk_tokens(self, num_decoding: int) -> int:
        """Prompt tokens to take between two steps."""
        return PREFILL_CHUNK_TOKENS

    def recall(self, row: BatchEntry) -> None:
        """Take what is already known of a prompt's beginning into the row's slot.

        What is computed in one piece is not put together of a known beginning and a last token:
        in bfloat16 the last bits would be others.
        """
        if not (self._decoder.is_mirror and len(row.ids) - 1 <= PREFILL_CHUNK_TOKENS):
            super().recall(row)

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Take each row's tokens into the cache up to the place given."""
        for row, end in chunks:
            if end <= row.num_cached:
                continue
            places = torch.tensor([row.num_cached]), torch.tensor([row.slot])
            if self._decoder.is_mirror and row.num_cached == 0 and end == len(row.ids) - 1:
                # transformers takes a prompt's last token with the others.
                logits = self._decoder.forward(torch.tensor([row.ids]), *places)
                self._ready[row.slot] = len(row.ids), logits
            else:
                self._decoder.fill(torch.tensor([row.ids[row.num_cached : end]]), *places)
            row.num_cached = end

    def decode(self, rows: Sequence[BatchEntry]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        found = {
            i: logits for i, row in enumerate(rows) if (logits := self._taken(row)) is not None
        }
        others = [row for i, row in enumerate(rows) if i not in found]
        if not found:
            return self._decode(others)
        computed = iter(self._decode(others).split(1) if others else ())
        return torch.cat([found[i] if i in found else next(computed) for i in range(len(rows))])

    def _taken(self, row: BatchEntry) -> Tensor | None:
        num_tokens, logits = self._ready.pop(row.slot, (0, None))
        if num_tokens != len(row.ids):
            return None
        row.num_cached = num_tokens
        return logits

    def _decode(self, rows: Sequence[BatchEntry]) -> Tensor:
        tokens = torch.tensor([[row.ids[-1]] for row in rows])
        positions = torch.tensor([len(row.ids) - 1 for row in rows])
        slots = torch.tensor([row.slot for row in rows])
        logits = self._decoder.forward(tokens, positions, slots)
        for row in rows:
            row.num_cached = len(row.ids)
        return logits

    def release(self, slot: int) -> None:
        """Give a slot's memory back."""
        self._ready.pop(slot, None)
        super().release(slot)

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after every token of a text; fills a slot."""
        places = torch.tensor([0]), torch.tensor([slot])
        return self._decoder.forward_everywhere(torch.tensor([ids]), *places)[0]


class KernelRunner(SlotRunner):
    """Runs our own decoder in compiled kernels."""

    is_ragged = True

    def __init__(self, decoder: NativeDecoder, *, prefix_bytes: int) -> None:
        """Keep the decoder."""
        super().__init__(decoder.cache, prefix_bytes=prefix_bytes, granularity=1)
        self._decoder = decoder

    def chunk_tokens(self, num_decoding: int) -> int:
        """Prompt tokens to take between two steps: about two steps' worth."""
        if num_decoding == 0:
            return MAX_STEP_TOKENS // 2  # where somebody may join before the prompt is through
        return min(max(MIN_CHUNK_TOKENS, 2 * num_decoding), MAX_STEP_TOKENS)

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Take each row's tokens into the cache up to the place given, together."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for row, end in chunks:
            tokens += row.ids[row.num_cached : end]
            positions += range(row.num_cached, end)
            slots += [row.slot] * (end - row.num_cached)
        self._decoder.forward(tokens, positions, slots, [])
        for row, end in chunks:
            row.num_cached = end

    def decode(self, rows: Sequence[BatchEntry]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        logits = self._decoder.forward(
            [row.ids[-1] for row in rows],
            [len(row.ids) - 1 for row in rows],
            [row.slot for row in rows],
            range(len(rows)),
        )
        for row in rows:
            row.num_cached = len(row.ids)
        return logits

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after every token of a text; fills a slot."""
        places = range(len(ids))
        return self._decoder.forward(ids, places, [slot] * len(ids), places).clone()

    @property
    def sample(self) -> SampleKernel:
        """The kernel that samples tokens."""
        return self._decoder.sample

    def seconds(self) -> dict[str, float]:
        """Time spent since the start, by what it went into."""
        return self._decoder.seconds()
