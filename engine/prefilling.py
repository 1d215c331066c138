"""Which prompts are computed next, and how many tokens of each.

The prompts with the fewest missing tokens come first, so that a short prompt waits for a small
multiple of its own length, whatever other prompts there are. Tokens of other prompts are a debt to
the oldest prompt. While there is a debt, the oldest comes first: half of all prompt tokens are its
own. Pure Python: knows nothing of torch or of a chunk's computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from textmill.engine.models.prefixes import packed, shared_length
from textmill.engine.sequence import TokenSequence

SHARED_TOKENS = 32  # to compute a shorter prefix twice is faster than to wait for it
# A prompt waits for another with the same prefix if the other misses at most this many times the
# tokens that would be saved. Otherwise a short prompt would wait for a long one with its prefix.
WAIT_FACTOR = 2
Chunk = tuple[TokenSequence, int]  # a sequence, and the end of its tokens to compute


class Prefilling:
    """Plans the prompts of one model from step to step."""

    def __init__(self) -> None:
        self._oldest: TokenSequence | None = None
        self._owed_tokens = 0  # of other prompts, while the oldest waited

    def plan(
        self,
        sequences: Sequence[TokenSequence],
        budget: int,
        *,
        recall: Callable[[TokenSequence], None],
        chunk_tokens: int | None = None,
    ) -> list[Chunk]:
        """Plan the chunks of one step.

        Args:
            sequences: those whose prompts are not completely cached, oldest first.
            budget: tokens of all chunks together.
            recall: copies a known prefix of a prompt into its slot.
            chunk_tokens: if chunks cannot be cut anywhere: a prompt is split into chunks of this
                many tokens and a last one, so that their bounds depend on the prompt alone.
        """
        ready = find_ready(sequences, recall)
        if not ready:
            return []
        if self._oldest is not ready[0]:
            self._oldest, self._owed_tokens = ready[0], 0
        if self._owed_tokens <= 0:
            ready.sort(key=lambda sequence: sequence.num_missing)  # stable: of equals, the oldest
        if chunk_tokens is None:
            chunks = _share_budget(ready, budget)
        else:
            chunks = _share_whole_chunks(ready, budget, chunk_tokens)
        for sequence, end in chunks:
            num_tokens = end - sequence.num_cached
            self._owed_tokens += -num_tokens if sequence is self._oldest else num_tokens
        self._owed_tokens = max(0, self._owed_tokens)
        return chunks


def _share_budget(sequences: Iterable[TokenSequence], budget: int) -> list[Chunk]:
    """Give each prompt as many tokens as the budget allows.

    A step that completes prompts computes no more tokens of other prompts than of those, because
    their first new tokens come after the step.
    """
    chunks: list[Chunk] = []
    num_ending = num_others = 0
    for sequence in sequences:
        left = budget - num_ending - num_others
        num_tokens = min(sequence.num_missing, left)
        if num_tokens == sequence.num_missing:
            num_ending += num_tokens
        else:
            num_tokens = min(num_tokens, num_ending - num_others) if num_ending else num_tokens
            num_others += num_tokens
        if num_tokens <= 0:
            break
        chunks.append((sequence, sequence.num_cached + num_tokens))
    return chunks


def _share_whole_chunks(
    sequences: Iterable[TokenSequence], budget: int, chunk_tokens: int
) -> list[Chunk]:
    """Give each prompt one whole chunk while the budget lasts, and the first one in any case."""
    chunks: list[Chunk] = []
    for sequence in sequences:
        num_tokens = min(sequence.num_missing, chunk_tokens)
        if chunks and num_tokens > budget:
            break
        chunks.append((sequence, sequence.num_cached + num_tokens))
        budget -= num_tokens
    return chunks


def find_ready(
    sequences: Iterable[TokenSequence], recall: Callable[[TokenSequence], None]
) -> list[TokenSequence]:
    """The sequences with missing tokens that wait for no other; each is recalled once."""
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
    """The first older sequence that will soon have computed a long prefix of a prompt."""
    key = packed(sequence.ids)
    for other in older:
        if other.ids[:SHARED_TOKENS] != sequence.ids[:SHARED_TOKENS]:
            continue
        shared = shared_length(packed(other.ids), key)
        if shared >= SHARED_TOKENS and other.num_missing <= WAIT_FACTOR * shared:
            return other
    return None
