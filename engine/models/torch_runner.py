"""Feeds sequences to the decoder in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.decoder import Decoder
from textmill.engine.models.runner import PREFILL_CHUNK_TOKENS, SlotRunner
from textmill.engine.models.weights import Float32


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

    def log_softmax(self, logits: Tensor) -> Float32:
        """The logarithms of the probabilities, (rows, vocabulary) float32, of such logits."""
        return log_softmax(logits)

    def release(self, slot: int) -> None:
        """Return a slot's memory to the system."""
        self._ready.pop(slot, None)
        super().release(slot)

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after each token of ``ids``; overwrites a slot."""
        places = torch.tensor([0]), torch.tensor([slot])
        return self._decoder.forward_everywhere(torch.tensor([ids]), *places)[0]


def log_softmax(logits: Tensor) -> Float32:
    """The logarithms of the probabilities, (rows, vocabulary) float32, of such logits."""
    found: Float32 = torch.log_softmax(logits, -1).cpu().numpy()
    return found
