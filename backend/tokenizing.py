"""Counts and cuts tokens as the worker does, from the tokenizer that a model's card holds."""

from __future__ import annotations

import threading

from tokenizers import Tokenizer


class TokenizerCache:
    """The tokenizers of the models' present revisions."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._tokenizers: dict[str, tuple[str, Tokenizer]] = {}

    def has(self, name: str, revision: str) -> bool:
        """Whether this revision's tokenizer is here."""
        held = self._tokenizers.get(name)
        return held is not None and held[0] == revision

    def put(self, name: str, revision: str, tokenizer_json: str) -> None:
        """Take a model's tokenizer.json."""
        tokenizer = Tokenizer.from_str(tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        with self._lock:
            self._tokenizers[name] = (revision, tokenizer)

    def count(self, name: str, text: str) -> int:
        """Tokens of a text, those that a prompt gets by itself included."""
        return len(self._tokenizers[name][1].encode(text).ids)

    def tokens(self, name: str, text: str) -> list[dict[str, int | str]]:
        """The tokens with the part of the text that each one covers."""
        encoding = self._tokenizers[name][1].encode(text)
        return [
            {"id": token, "text": text[start:end]}
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
