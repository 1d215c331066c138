"""Counts and cuts tokens as the worker does, from the tokenizer that a model's card holds."""

from __future__ import annotations

import threading

import structlog

from textmill.tokenizing.safe_tokenizer import SafeTokenizer, TokenizerFault

log = structlog.get_logger(__name__)


class TokenizerCache:
    """The tokenizers of the models' present revisions."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._tokenizers: dict[str, tuple[str, SafeTokenizer | None]] = {}

    def has(self, name: str, revision: str) -> bool:
        """Whether this revision's tokenizer has been looked at."""
        held = self._tokenizers.get(name)
        return held is not None and held[0] == revision

    def can_read(self, name: str) -> bool:
        """Whether the model has a tokenizer that can be used here."""
        held = self._tokenizers.get(name)
        return held is not None and held[1] is not None

    def put(self, name: str, revision: str, tokenizer_json: str) -> None:
        """Take a model's tokenizer.json; one that cannot be loaded is remembered as such."""
        with self._lock:  # loading takes half a second, and once is enough
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
        """Counts for one request."""
        return TokenCounter(self._tokenizer(name))

    def tokens(self, name: str, text: str) -> list[dict[str, int | str]]:
        """The tokens with the part of the text that each one covers; together they are the text.

        Raises:
            TokenizerFault: the tokenizer cannot read the text.
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
    """Counts the tokens of texts, of each text once."""

    def __init__(self, tokenizer: SafeTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int | TokenizerFault] = {}

    def least(self, text: str) -> int:
        """How many tokens a text has at least, in no time."""
        return self._tokenizer.least_tokens(text)

    def __call__(self, text: str) -> int:
        """Tokens of a text, those that a prompt gets by itself included.

        Raises:
            TokenizerFault: the tokenizer cannot read it.
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
