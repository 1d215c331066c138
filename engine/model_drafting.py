"""Drafts for the sequences of one model: which are guessed ahead, and how far.

A draft never changes a text: ``engine.decode_batch`` keeps the tokens that the sampler draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from weakref import WeakKeyDictionary

from textmill.engine.beams import BeamSequence
from textmill.engine.sequence import TokenSequence
from textmill.engine.speculation.acceptance import AcceptanceTracker
from textmill.engine.speculation.draft_sampler import draft_sampler_for
from textmill.engine.speculation.ngram_table import NgramTable
from textmill.engine.speculation.proposer import (
    MAX_DRAFT_TOKENS,
    DraftToken,
    TextIndex,
    propose,
)

MAX_SEQUENCES = 4  # with more, the kernels' time is proportional to tokens, and guesses cost it
# The least probability with which a draft's last token must be expected to hold, by the number of
# sequences that run: about the time of one more token in a step, as a share of the step's time.
MIN_CONFIDENCES = (0.15, 0.35, 0.5, 0.6)


@dataclass(slots=True)
class _Drafting:
    """What is known of one sequence."""

    index: TextIndex = field(default_factory=TextIndex)
    acceptance: AcceptanceTracker = field(default_factory=AcceptanceTracker)
    guesses: list[DraftToken] = field(default_factory=list)


class ModelDrafting:
    """Drafts tokens for one model's sequences, and learns which hold."""

    def __init__(self, table: NgramTable | None) -> None:
        """Start.

        Args:
            table: the model's, if its folder has one.
        """
        self._table = table
        self._known: WeakKeyDictionary[TokenSequence, _Drafting] = WeakKeyDictionary()

    def draft(self, sequences: Sequence[TokenSequence]) -> dict[TokenSequence, list[int]]:
        """DraftToken the next tokens of sequences that are about to be decoded together.

        Args:
            sequences: all that the step contains; with a beam search there are no drafts, since
                it has many entries.

        Returns:
            The guesses of those that have any.
        """
        if len(sequences) > MAX_SEQUENCES or any(isinstance(s, BeamSequence) for s in sequences):
            return {}
        drafts = {s: self._guess(s, MIN_CONFIDENCES[len(sequences) - 1]) for s in sequences}
        return {sequence: draft for sequence, draft in drafts.items() if draft}

    def note(self, sequence: TokenSequence, num_accepted: int) -> None:
        """Remember how many tokens of a sequence's draft were accepted."""
        known = self._known[sequence]
        expected = sum(accumulate((guess.confidence for guess in known.guesses), mul))
        known.acceptance.note(expected, num_accepted)

    def _guess(self, sequence: TokenSequence, min_confidence: float) -> list[int]:
        known = self._known.setdefault(sequence, _Drafting())
        known.guesses = propose(
            sequence.ids,
            known.index,
            self._table,
            # The step's own token is not a guess.
            max_tokens=min(MAX_DRAFT_TOKENS, sequence.max_tokens - len(sequence.ids) - 1),
            min_confidence=min_confidence / known.acceptance.scale,
            sample=draft_sampler_for(sequence.sampling_state()),
        )
        if not known.guesses:
            known.acceptance.note(0.0, 0)
        return [guess.token for guess in known.guesses]
