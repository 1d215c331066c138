"""The step from a batch's logits to its tokens and their traces, whichever code computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from textmill.engine.sampling.token_records import SamplingState, TokenTrace


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sequence's next token; ``None`` where its logits have NaN or no finite maximum."""

    token: int | None
    trace: TokenTrace | None


class Sampler(Protocol):
    """Samples tokens for a batch of any strategies."""

    def sample(
        self, logits: Any, states: Sequence[SamplingState], text_of: Callable[[int], str]
    ) -> list[SampledToken]:
        """Sample one token for each row of logits (rows, vocabulary) float32, with its trace."""
        ...

    def are_finite(self, logits: Any) -> bool:
        """Whether a token can be chosen from each row: no NaN, and a finite maximum."""
        ...

    def trace(
        self, logits: Any, tokens: Sequence[int], text_of: Callable[[int], str]
    ) -> list[TokenTrace]:
        """Trace the given token of each row of logits (rows, vocabulary) as a certain choice."""
        ...
