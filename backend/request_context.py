"""The models with which a request is validated, and their limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class TokenCounting(Protocol):
    """Counts the tokens of prompts; the second call for the same prompt is free."""

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text.

        Raises:
            TokenizerFault: the model's tokenizer cannot process it.
        """
        ...

    def least(self, text: str) -> int:
        """Return a lower bound without tokenizing; 0 if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The limits of a model; they are ``None`` until a worker has loaded it."""

    context_length: int | None
    vocabulary_size: int | None
    count_tokens: TokenCounting | None
    decode: Callable[[list[int]], str] | None = None


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The models, by name, with their limits."""

    default_model: str
    limits: Mapping[str, ModelLimits]
