"""Which prompts go into the cache next, and how far: the share of each in a step's prompt tokens.

Every second step serves the prompts that miss least first, so that a short prompt waits for a small
multiple of its own length whatever is beside it; the steps between serve the oldest first, so that
a long one has half of all steps at least when it has become the oldest. Pure Python: knows nothing
of torch or of what a chunk computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf

from worker.engine.sequence import Sequence
from worker.models.prefixes import packed, shared_length

SHARED_TOKENS = 32  # a shorter beginning is computed twice sooner than waited for
# A prompt waits for one whose beginning it shares while that one misses at most so many times what
# would be saved; else a short prompt would wait for a long one that begins alike.
WAIT_FACTOR = 2
Chunk = tuple[Sequence, int]  # and the place up to which it is taken


def plan(
    sequences: SequenceOf[Sequence],
    budget: int,
    *,
    is_oldest_first: bool,
    recall: Callable[[Sequence], None],
    chunk_tokens: int | None = None,
) -> list[Chunk]:
    """The chunks of one step.

    Args:
        sequences: of one model, whose prompts are not all in the cache; oldest first.
        budget: tokens to take together.
        is_oldest_first: whom to serve first; to be changed from step to step.
        recall: takes what is already known of a prompt into its slot.
        chunk_tokens: where chunks may not be cut anywhere: a prompt is taken in pieces of so many
            tokens and a last one, whose bounds then depend on the prompt alone.
    """
    ready = find_ready(sequences, recall)
    if not is_oldest_first:
        ready.sort(key=lambda sequence: sequence.num_missing)  # stable: of equals the oldest
    chunks: list[Chunk] = []
    for sequence in ready:
        taken = min(sequence.num_missing, chunk_tokens or budget)
        if budget <= 0 or (taken > budget and chunks):
            break
        chunks.append((sequence, sequence.num_cached + taken))
        budget -= taken
    return chunks


def find_ready(sequences: Iterable[Sequence], recall: Callable[[Sequence], None]) -> list[Sequence]:
    """Those that miss tokens and wait for no other; what is known of each is recalled once."""
    ready: list[Sequence] = []
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


def _awaited(sequence: Sequence, older: Iterable[Sequence]) -> Sequence | None:
    """The first of those in work that will soon have computed a good part of a prompt."""
    key = packed(sequence.ids)
    for other in older:
        if other.ids[:SHARED_TOKENS] != sequence.ids[:SHARED_TOKENS]:
            continue
        shared = shared_length(packed(other.ids), key)
        if shared >= SHARED_TOKENS and other.num_missing <= WAIT_FACTOR * shared:
            return other
    return None
