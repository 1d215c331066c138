"""How far one sequence is guessed ahead: less where its guesses fail, and again after a while."""

from __future__ import annotations

# Expected guesses that weigh as much as experience: the first few steps decide little.
PRIOR_TOKENS = 4.0
# What is remembered of earlier steps; the memory halves in 23 steps, also without guesses, so that
# a sequence whose guesses failed is tried again.
MEMORY = 0.97


class AcceptanceTracker:
    """Compares the number of accepted draft tokens with the number that was expected."""

    def __init__(self) -> None:
        self._expected = 0.0
        self._accepted = 0.0

    @property
    def scale(self) -> float:
        """The factor on the confidence of guesses that experience suggests, at most 1.25."""
        return min(1.25, (self._accepted + PRIOR_TOKENS) / (self._expected + PRIOR_TOKENS))

    def note(self, num_expected: float, num_accepted: int) -> None:
        """Remember a step: how many guesses were expected to hold, and how many did."""
        self._expected = self._expected * MEMORY + num_expected
        self._accepted = self._accepted * MEMORY + num_accepted
