"""Beam search: several likely texts followed at once, of which the best is kept.

Gives the tokens of transformers' ``generate(num_beams=…)``, whose rules for the length penalty and
for stopping early are those of Wu et al., "Google's neural machine translation system" (2016), and
of fairseq. Knows nothing of models, caches or slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Beam:
    """A live text: the row that it goes on from, and with which token."""

    parent: int
    token: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text that has ended.

    Attributes:
        tokens: without the end token.
        finish_reason: ``stop`` or ``length``.
        score: sum of the tokens' logarithms of probability over length ** length_penalty.
    """

    tokens: tuple[int, ...]
    finish_reason: str
    score: float


class BeamSearch:
    """One search, fed with the logits of its own rows alone."""

    def __init__(
        self,
        *,
        num_beams: int,
        length_penalty: float,
        early_stopping: bool,
        max_new_tokens: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        """Start with the prompt.

        Args:
            num_beams: texts to follow, 2 or more.
            length_penalty: above 0 longer texts are favoured, below 0 shorter ones.
            early_stopping: end as soon as ``num_beams`` texts have ended; else when no live text
                could become better than the worst of them, judged at the present length.
            max_new_tokens: 1 or more.
            eos_token_ids: tokens that end a text.
        """
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._max_new_tokens = max_new_tokens
        self._eos = eos_token_ids
        self._texts: list[tuple[int, ...]] = [()]
        self._scores = torch.zeros(1)
        self._ended: list[Hypothesis] = []  # best first, at most num_beams
        self.is_done = False

    @property
    def best(self) -> Hypothesis:
        """The best text that has ended; there is one when the search is done."""
        return self._ended[0]

    @property
    def leading(self) -> tuple[int, ...]:
        """Tokens of the likeliest live text."""
        return self._texts[0]

    def advance(self, logits: Tensor) -> list[Beam]:
        """Go one token on.

        Args:
            logits: (rows, vocabulary) float32 of the live texts in order; one row, the prompt's,
                at first.

        Returns:
            The live texts of the next step, likeliest first; none when the search is over.
        """
        sums = torch.log_softmax(logits, -1) + self._scores[:, None]
        # So many that enough are left to go on with when the likeliest all end.
        num_kept = min(max(2, 1 + len(self._eos)) * self._num_beams, sums.numel())
        values, places = torch.topk(sums.flatten(), num_kept)
        size = logits.shape[-1]
        beams = [Beam(place // size, place % size) for place in places.tolist()]
        length = len(self._texts[0]) + 1
        ends = [length >= self._max_new_tokens or beam.token in self._eos for beam in beams]
        self._collect(beams, ends, values, length)
        going = [i for i, is_end in enumerate(ends) if not is_end][: self._num_beams]
        if going:
            self._texts = [(*self._texts[beams[i].parent], beams[i].token) for i in going]
            self._scores = values[going]
        self.is_done = not going or not self._can_improve(length)
        return [] if self.is_done else [beams[i] for i in going]

    def _collect(self, beams: list[Beam], ends: list[bool], values: Tensor, length: int) -> None:
        """Take in the texts that end among the likeliest, and keep the best."""
        scores = (values / length**self._length_penalty).tolist()
        for i in range(min(self._num_beams, len(beams))):
            if not ends[i]:
                continue
            parent, token = self._texts[beams[i].parent], beams[i].token
            is_stop = token in self._eos
            tokens = parent if is_stop else (*parent, token)
            self._ended.append(Hypothesis(tokens, "stop" if is_stop else "length", scores[i]))
        self._ended.sort(key=lambda hypothesis: -hypothesis.score)  # of equals the earlier first
        del self._ended[self._num_beams :]

    def _can_improve(self, length: int) -> bool:
        if len(self._ended) < self._num_beams:
            return True
        if self._early_stopping:
            return False
        return float(self._scores[0] / length**self._length_penalty) > self._ended[-1].score
