"""Beam search: several likely continuations are followed at once, and the best is kept.

Returns the tokens of transformers' ``generate(num_beams=…)``, whose rules for the length penalty
and for stopping early are those of Wu et al., "Google's neural machine translation system" (2016),
and of fairseq. Knows nothing of models, caches or slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation in progress: the beam that it extends, and its new token."""

    parent: int
    token: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A continuation that has ended.

    Attributes:
        tokens: without the end token.
        finish_reason: ``stop`` or ``length``.
        score: the sum of the tokens' log probabilities divided by length ** length_penalty.
    """

    tokens: tuple[int, ...]
    finish_reason: str
    score: float


class BeamSearch:
    """One search. Its input is the logits of its own beams."""

    def __init__(
        self,
        *,
        num_beams: int,
        length_penalty: float,
        early_stopping: bool,
        max_new_tokens: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        """Start a search from a prompt.

        Args:
            num_beams: continuations to follow, 2 or more.
            length_penalty: above 0 favors longer continuations, below 0 shorter ones.
            early_stopping: end as soon as ``num_beams`` hypotheses have ended; otherwise when no
                beam could become better than the worst of them, judged at the current length.
            max_new_tokens: 1 or more.
            eos_token_ids: tokens that end a continuation.
        """
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._max_new_tokens = max_new_tokens
        self._eos = eos_token_ids
        self._beams: list[tuple[int, ...]] = [()]
        self._scores = np.zeros(1, np.float32)
        self._ended: list[Hypothesis] = []  # best first, at most num_beams
        self.is_done = False

    @property
    def best(self) -> Hypothesis:
        """The best hypothesis that has ended; there is one when the search is done."""
        return self._ended[0]

    @property
    def leading(self) -> tuple[int, ...]:
        """The tokens of the likeliest beam."""
        return self._beams[0]

    def advance(self, log_probabilities: Float32) -> list[Beam]:
        """Advance by one token.

        Args:
            log_probabilities: of the next token, (beams, vocabulary) float32, of the beams in
                order; at first one row, the prompt's.

        Returns:
            The beams of the next step, likeliest first; none when the search is over.
        """
        sums = log_probabilities + self._scores[:, None]
        # Enough to leave num_beams continuations if the likeliest ones all end.
        num_kept = min(max(2, 1 + len(self._eos)) * self._num_beams, sums.size)
        places = largest_places(sums.reshape(-1), num_kept)
        values = sums.reshape(-1)[places]
        size = sums.shape[-1]
        beams = [Beam(place // size, place % size) for place in places.tolist()]
        length = len(self._beams[0]) + 1
        ends = [length >= self._max_new_tokens or beam.token in self._eos for beam in beams]
        self._collect(beams, ends, values, length)
        going = [i for i, is_end in enumerate(ends) if not is_end][: self._num_beams]
        if going:
            self._beams = [(*self._beams[beams[i].parent], beams[i].token) for i in going]
            self._scores = values[going]
        self.is_done = not going or not self._can_improve(length)
        return [] if self.is_done else [beams[i] for i in going]

    def _collect(self, beams: list[Beam], ends: list[bool], values: Float32, length: int) -> None:
        """Add the likeliest continuations that end to the hypotheses, and keep the best."""
        scores = (values / length**self._length_penalty).tolist()
        for i in range(min(self._num_beams, len(beams))):
            if not ends[i]:
                continue
            parent, token = self._beams[beams[i].parent], beams[i].token
            is_stop = token in self._eos
            tokens = parent if is_stop else (*parent, token)
            self._ended.append(Hypothesis(tokens, "stop" if is_stop else "length", scores[i]))
        self._ended.sort(
            key=lambda hypothesis: -hypothesis.score
        )  # stable: of equals, the earlier first
        del self._ended[self._num_beams :]

    def _can_improve(self, length: int) -> bool:
        if len(self._ended) < self._num_beams:
            return True
        if self._early_stopping:
            return False
        return float(self._scores[0] / length**self._length_penalty) > self._ended[-1].score


def largest_places(values: Float32, count: int) -> NDArray[np.intp]:
    """The places of the largest values, in descending order; of equals, the first are taken."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    places = np.flatnonzero(values >= least)
    return places[np.argsort(-values[places], kind="stable")[:count]]
