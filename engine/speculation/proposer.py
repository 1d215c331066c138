"""Guesses the next tokens of a text: from its own repetitions, and from a table of n-grams.

Prompt-lookup decoding (Saxena, 2023) finds the last place where the text's last tokens occurred
before, and guesses what followed. The table answers where the text does not repeat itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textmill.engine.speculation.ngram_table import NgramTable

MAX_DRAFT_TOKENS = 8  # a ninth would seldom count: all before it must hold
MATCH_TOKENS = 3  # shorter repetitions foretell less than the table
# How likely repetitions of three, four and more tokens go on as before: first estimates, which
# ``AcceptanceTracker`` corrects for each text.
MATCH_CONFIDENCES = (0.5, 0.65, 0.8)
Candidates = Sequence[tuple[int, float]]
SampleDraft = Callable[[Candidates, int], "DraftToken"]


@dataclass(frozen=True, slots=True)
class DraftToken:
    """A guessed token, and the probability with which it is expected to be the next one."""

    token: int
    confidence: float


class TextIndex:
    """Where the n-grams of one growing text occurred last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → the place after it
        self._num_seen = 0

    def match(self, ids: Sequence[int]) -> int | None:
        """The place after the last earlier occurrence of the text's last tokens.

        Args:
            ids: the text, which only ever grows from call to call.
        """
        for end in range(max(MATCH_TOKENS, self._num_seen), len(ids)):
            self._ends[tuple(ids[end - MATCH_TOKENS : end])] = end
        self._num_seen = max(self._num_seen, len(ids))
        return self._ends.get(tuple(ids[-MATCH_TOKENS:]))


def propose(
    ids: Sequence[int],
    index: TextIndex,
    table: NgramTable | None,
    *,
    max_tokens: int,
    min_confidence: float,
    sample: SampleDraft,
) -> list[DraftToken]:
    """DraftToken the tokens that follow a text.

    Args:
        ids: the text.
        index: its own, with every call.
        table: of the model; ``None`` for none.
        max_tokens: the limit on guesses.
        min_confidence: the least probability that a guess and all before it hold.
        sample: returns the guess among a place's candidates, given the number of earlier guesses.
    """
    place = index.match(ids)
    length = 0 if place is None else _num_equal(ids, place)
    order = 1 if table is None else table.order
    context = list(ids[-order:])
    guesses: list[DraftToken] = []
    expected = 1.0
    while len(guesses) < max_tokens:
        guess = None
        if place is not None and place < len(ids):
            confidence = MATCH_CONFIDENCES[min(length - MATCH_TOKENS, len(MATCH_CONFIDENCES) - 1)]
            guess = DraftToken(ids[place], confidence)
        if table is not None and (found := table.successors(context)):
            other = sample(found, len(guesses))
            if guess is None or other.confidence > guess.confidence:
                guess = other
        if guess is None or expected * guess.confidence < min_confidence:
            break
        expected *= guess.confidence
        guesses.append(guess)
        context = [*context[-order + 1 :], guess.token] if order > 1 else [guess.token]
        if place is not None:
            place = place + 1 if place < len(ids) and ids[place] == guess.token else None
            length += 1
    return guesses


def _num_equal(ids: Sequence[int], place: int) -> int:
    """The number of tokens before a place that equal the text's last ones, up to a limit."""
    limit = MATCH_TOKENS + len(MATCH_CONFIDENCES)
    length = MATCH_TOKENS
    while length < min(limit, place) and ids[place - length - 1] == ids[-length - 1]:
        length += 1
    return length
