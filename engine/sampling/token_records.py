"""What goes into a choice and what is told of it afterwards. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textmill.core.strategies import DecodingParameters

NUM_ALTERNATIVES = 20  # that a trace tells of each token


@dataclass(frozen=True, slots=True)
class SamplingState:
    """What choosing a row's next token needs beside its logits."""

    parameters: DecodingParameters
    ids: Sequence[int]  # the prompt and what was written
    position: int  # of the new token, from 0 at the start of the continuation


@dataclass(frozen=True, slots=True)
class Probabilities:
    """What a token was drawn with, and what others might have been.

    Attributes:
        probability: of the token drawn, after the strategy's cut.
        ids: of the model's likeliest tokens, the likeliest first.
        probabilities: theirs, after the strategy's cut.
    """

    probability: float
    ids: list[int]
    probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A likely token; ``probability`` is after the strategy's cut."""

    id: int
    text: str
    logprob: float
    probability: float


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One token of a text.

    Attributes:
        logprob: natural logarithm of the model's own probability, before penalty and temperature.
        rank: place among all tokens by that probability, from 1.
        probability: what it was drawn with, after the strategy's cut; 1 where none was drawn.
        entropy: of the model's own distribution, in nats.
        alternatives: the likeliest tokens, the chosen one perhaps among them; they may be made
            only when they are looked at.
    """

    id: int
    text: str
    logprob: float
    rank: int
    probability: float
    entropy: float
    alternatives: Sequence[Alternative]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {
            "id": self.id,
            "text": self.text,
            "logprob": self.logprob,
            "rank": self.rank,
            "probability": self.probability,
            "entropy": self.entropy,
            "alternatives": [
                {"id": a.id, "text": a.text, "logprob": a.logprob, "probability": a.probability}
                for a in self.alternatives
            ],
        }
