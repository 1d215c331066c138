"""Tokenizes texts in the web process with the tokenizers that workers have stored.

The result is the same as the worker's.
"""

from __future__ import annotations

import threading

import structlog

from textmill.backend.response_models import TokenView
from textmill.tokenizing.safe_tokenizer import SafeTokenizer, TokenizerFault

log = structlog.get_logger(__name__)


class TokenizerCache:
    """The tokenizers of the current revision of each model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizers: dict[str, tuple[str, SafeTokenizer | None]] = {}

    def has(self, name: str, revision: str) -> bool:
        """Return whether this revision was put here, usable or not."""
        held = self._tokenizers.get(name)
        return held is not None and held[0] == revision

    def is_usable(self, name: str) -> bool:
        """Return whether the model has a tokenizer that could be loaded."""
        held = self._tokenizers.get(name)
        return held is not None and held[1] is not None

    def put(self, name: str, revision: str, tokenizer_json: str) -> None:
        """Load the tokenizer of a revision; a failure is remembered and logged."""
        with self._lock:  # loading takes half a second, so it is done once
            if self.has(name, revision):
                return
            tokenizer: SafeTokenizer | None = None
            try:
                tokenizer = SafeTokenizer(tokenizer_json)
            except TokenizerFault as fault:
                log.warning("tokenizer_unusable", model=name, revision=revision, reason=str(fault))
            before = self._tokenizers.get(name)
            self._tokenizers[name] = (revision, tokenizer)
        if before is not None and before[1] is not None:
            before[1].close()

    def counter(self, name: str) -> TokenCounter:
        """Return a counter for one request."""
        return TokenCounter(self._tokenizer(name))

    def encode(self, name: str, text: str, *, adds_ends: bool) -> list[int]:
        """Return the token ids of a text.

        Raises:
            TokenizerFault: the tokenizer cannot process the text.
        """
        return self._tokenizer(name).encode(text, adds_ends=adds_ends)

    def decode(self, name: str, ids: list[int]) -> str:
        """Return the text of tokens, special ones included.

        Raises:
            TokenizerFault: the tokenizer fails on them.
        """
        return self._tokenizer(name).decode(ids, skip_special_tokens=False)

    def tokens(self, name: str, text: str) -> list[TokenView]:
        """Return the tokens of a text, each with the part it covers; the parts join to the text.

        Raises:
            TokenizerFault: the tokenizer cannot process the text.
        """
        spans = self._tokenizer(name).spans(text)
        pieces = spans.pieces(text)
        return [
            {"id": token, "text": piece} for token, piece in zip(spans.ids, pieces, strict=True)
        ]

    def _tokenizer(self, name: str) -> SafeTokenizer:
        tokenizer = self._tokenizers[name][1]
        if tokenizer is None:
            raise TokenizerFault("The model's tokenizer cannot be loaded.")
        return tokenizer


class TokenCounter:
    """Counts the tokens of texts; each text is counted once."""

    def __init__(self, tokenizer: SafeTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int | TokenizerFault] = {}

    def least(self, text: str) -> int:
        """Return a lower bound of the number of tokens, without tokenizing."""
        return self._tokenizer.least_tokens(text)

    def __call__(self, text: str) -> int:
        """Return the number of tokens, including those that the tokenizer adds to a prompt.

        Raises:
            TokenizerFault: the tokenizer cannot process the text.
        """
        known = self._known.get(text)
        if known is None:
            try:
                known = len(self._tokenizer.encode(text))
            except TokenizerFault as fault:
                known = fault
            self._known[text] = known
        if isinstance(known, TokenizerFault):
            raise known
        return known
