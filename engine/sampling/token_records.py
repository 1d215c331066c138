"""The input of sampling a token, and the records of its trace. Needs no torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textmill.core.strategies import DecodingParameters

NUM_ALTERNATIVES = 20  # in the trace of a token


@dataclass(frozen=True, slots=True)
class TokenRules:
    """The tokens that the parameters of the strategy ``custom`` name, by the model's ids.

    Attributes:
        bias_ids: (n) int32, ascending.
        biases: (n) float32, added to the logits of these tokens.
        breaker_ids: (m) int32, the tokens that no repetition continues across.
    """

    bias_ids: array[int]
    biases: array[float]
    breaker_ids: array[int]


@dataclass(frozen=True, slots=True)
class SamplingState:
    """The input, besides the logits, of sampling a sequence's next token."""

    parameters: DecodingParameters
    ids: Sequence[int]  # of the prompt and the completion so far
    position: int  # of the new token in the completion, from 0
    rules: TokenRules | None = None  # of the strategy custom, if its parameters name tokens

    @property
    def generated(self) -> Sequence[int]:
        """The tokens of the completion so far."""
        return self.ids[max(0, len(self.ids) - self.position) :]


@dataclass(frozen=True, slots=True)
class Probabilities:
    """The probabilities with which a token and its alternatives could be drawn.

    Attributes:
        probability: of the drawn token, after the strategy's filter.
        ids: the model's likeliest tokens, in descending order of probability.
        probabilities: of these, after the strategy's filter.
    """

    probability: float
    ids: list[int]
    probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A likely token; ``probability`` is after the strategy's filter."""

    id: int
    text: str
    logprob: float
    probability: float


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One token of a completion.

    Attributes:
        logprob: natural logarithm of the model's own probability, before penalty and temperature.
        rank: among all tokens by that probability, from 1.
        probability: with which it was drawn, after the strategy's filter; 1 for greedy decoding.
        entropy: of the model's own distribution, in nats.
        alternatives: the likeliest tokens, which may include this one; they may be computed on
            first access.
    """

    id: int
    text: str
    logprob: float
    rank: int
    probability: float
    entropy: float
    alternatives: Sequence[Alternative]

    def as_json(self) -> dict[str, Any]:
        """The trace as plain JSON."""
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
