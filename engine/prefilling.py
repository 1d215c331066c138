"""Which prompts go into the cache next, and how far: the share of each in a step's prompt tokens.

The prompts that miss least come first, so that a short prompt waits for a small multiple of its own
length whatever is beside it. What is taken of others is owed to the oldest, and while anything is
owed to it, the oldest comes first: half of all prompt tokens are its own. Pure Python: knows
nothing of torch or of what a chunk computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from textmill.engine.models.prefixes import packed, shared_length
from textmill.engine.sequence import TokenSequence

SHARED_TOKENS = 32  # a shorter beginning is computed twice sooner than waited for
# A prompt waits for one whose beginning it shares while that one misses at most so many times what
# would be saved; else a short prompt would wait for a long one that begins alike.
WAIT_FACTOR = 2
Chunk = tuple[TokenSequence, int]  # and the place up to which it is taken


class Prefilling:
    """The prompts of one model, as they go into the cache from step to step."""

    def __init__(self) -> None:
        """Start with nothing owed."""
        self._oldest: TokenSequence | None = None
        self._owed_tokens = 0  # taken of others while the oldest waited

    def plan(
        self,
        sequences: Sequence[TokenSequence],
        budget: int,
        *,
        recall: Callable[[TokenSequence], None],
        chunk_tokens: int | None = None,
    ) -> list[Chunk]:
        """The chunks of one step.

        Args:
            sequences: those whose prompts are not all in the cache; oldest first.
            budget: tokens to take together.
            recall: takes what is already known of a prompt into its slot.
            chunk_tokens: where chunks may not be cut anywhere: a prompt is taken in pieces of so
                many tokens and a last one, whose bounds then depend on the prompt alone.
        """
        ready = find_ready(sequences, recall)
        if not ready:
            return []
        if self._oldest is not ready[0]:
            self._oldest, self._owed_tokens = ready[0], 0
        if self._owed_tokens <= 0:
            ready.sort(key=lambda sequence: sequence.num_missing)  # stable: of equals the oldest
        if chunk_tokens is None:
            chunks = _shared_out(ready, budget)
        else:
            chunks = _shared_out_whole(ready, budget, chunk_tokens)
        for sequence, end in chunks:
            taken = end - sequence.num_cached
            self._owed_tokens += -taken if sequence is self._oldest else taken
        self._owed_tokens = max(0, self._owed_tokens)
        return chunks


def _shared_out(sequences: Iterable[TokenSequence], budget: int) -> list[Chunk]:
    """As much of each as there is budget for.

    A step that takes a prompt to its end takes no more of others than it takes of those that end:
    their first tokens come when it is over.
    """
    chunks: list[Chunk] = []
    num_ending = num_others = 0
    for sequence in sequences:
        left = budget - num_ending - num_others
        taken = min(sequence.num_missing, left)
        if taken == sequence.num_missing:
            num_ending += taken
        else:
            taken = min(taken, num_ending - num_others) if num_ending else taken
            num_others += taken
        if taken <= 0:
            break
        chunks.append((sequence, sequence.num_cached + taken))
    return chunks


def _shared_out_whole(
    sequences: Iterable[TokenSequence], budget: int, chunk_tokens: int
) -> list[Chunk]:
    """One whole chunk of each while they fit into the budget; the first one always does."""
    chunks: list[Chunk] = []
    for sequence in sequences:
        taken = min(sequence.num_missing, chunk_tokens)
        if chunks and taken > budget:
            break
        chunks.append((sequence, sequence.num_cached + taken))
        budget -= taken
    return chunks


def find_ready(
    sequences: Iterable[TokenSequence], recall: Callable[[TokenSequence], None]
) -> list[TokenSequence]:
    """Those that miss tokens and wait for no other; what is known of each is recalled once."""
    ready: list[TokenSequence] = []
    for sequence in sequences:
        if not sequence.is_recalled:
            if sequence.awaited not in ready:
                sequence.awaited = _awaited(sequence, ready)
            if sequence.awaited is not None:
                continue
            recall(sequence)
            sequence.is_recalled = True
        if sequence.num_missing > 0:
            ready.append(sequence)
    return ready


def _awaited(sequence: TokenSequence, older: Iterable[TokenSequence]) -> TokenSequence | None:
    """The first of those in work that will soon have computed a good part of a prompt."""
    key = packed(sequence.ids)
    for other in older:
        if other.ids[:SHARED_TOKENS] != sequence.ids[:SHARED_TOKENS]:
            continue
        shared = shared_length(packed(other.ids), key)
        if shared >= SHARED_TOKENS and other.num_missing <= WAIT_FACTOR * shared:
            return other
    return None
