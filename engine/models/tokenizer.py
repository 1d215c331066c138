"""Text to tokens and back, token by token, without emitting incomplete characters."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from textmill.engine.models.token_decoders import bytes_of_tokens, is_byte
from textmill.tokenizing.safe_tokenizer import SafeTokenizer

CONTEXT_TOKENS = 8  # of the prompt; enough to decode the first new token's space correctly
_HALF = "\ufffd"
_BYTES = ("ByteLevel", "ByteFallback")  # decoders whose tokens may be parts of characters


class TextTokenizer:
    """A tokenizer, read from a model's tokenizer.json."""

    def __init__(self, path: Path) -> None:
        """Read a tokenizer.json.

        Raises:
            TokenizerFault: it cannot be read.
        """
        self._content = path.read_bytes()  # as text it takes three times the memory
        self._tokenizer = SafeTokenizer(self._content.decode("utf-8"))
        self._texts: dict[int, str] = {}  # a cache: traces contain the same tokens many times
        added, decoder = self._tokenizer.added_tokens, self._tokenizer.decoder
        self._has_bytes = any(kind in json.dumps(decoder) for kind in _BYTES)
        self._special = {int(t["id"]): str(t["content"]) for t in added if t.get("special")}
        self._bytes_of = bytes_of_tokens(decoder)

    @property
    def json(self) -> str:
        """The content of tokenizer.json, with which another process counts the same tokens."""
        return self._content.decode("utf-8")

    def is_read_from(self, content: bytes) -> bool:
        """Whether this is the content of its tokenizer.json."""
        return self._content == content

    @property
    def largest_id(self) -> int:
        """The largest token id that ``encode`` can return; -1 if there is none."""
        return max(self._tokenizer.library.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """Encode a prompt, with the special tokens that the file specifies.

        Raises:
            TokenizerFault: the tokenizer cannot encode it.
        """
        return self._tokenizer.encode(text)

    def encode_part(self, text: str) -> list[int]:
        """Encode a part of a text, without the special tokens around a whole one.

        Raises:
            TokenizerFault: the tokenizer cannot encode it.
        """
        return self._tokenizer.encode(text, adds_ends=False)

    def text_of(self, token: int) -> str:
        """The text of a single token, for display; an incomplete character is U+FFFD."""
        text = self._texts.get(token)
        if text is None:
            text = self._tokenizer.decode([token], skip_special_tokens=False)
            self._texts[token] = text
        return text

    def special_text(self, token: int) -> str:
        """The name of a special token; empty for other tokens."""
        return self._special.get(token, "")

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes that a token adds to the text; ``None`` if they depend on other tokens."""
        if self._bytes_of is None:
            return None
        if token in self._special:
            return b""
        entry = self._tokenizer.library.id_to_token(token)
        return b"" if entry is None else self._bytes_of(entry)

    @property
    def is_bytes(self) -> bool:
        """Whether a token's bytes do not depend on other tokens, except for the first space."""
        return self._bytes_of is not None

    @property
    def may_end_in_half(self) -> bool:
        """Whether a token may be a part of a character."""
        return self._has_bytes

    @property
    def drops_first_space(self) -> bool:
        """Whether a space at the start of the whole text is removed."""
        return self._bytes_of is not None and self._bytes_of.drops_first_space

    def may_be_half(self, token: int) -> bool:
        """Whether this token may be a part of a character."""
        entry = self._tokenizer.library.id_to_token(token) if self._has_bytes else None
        return entry is not None and is_byte(entry)

    def decode(self, ids: list[int]) -> str:
        """Decode tokens, without special ones.

        Invalid bytes become U+FFFD; an incomplete character at the end is dropped.
        """
        if self._bytes_of is None:
            return self._tokenizer.decode(ids, skip_special_tokens=True)
        whole = b"".join(self.bytes_of(token) or b"" for token in ids)
        text = _utf8().decode(whole)
        return text.removeprefix(" ") if self.drops_first_space else text


class IncrementalDetokenizer:
    """Decodes a completion token by token.

    If each token has its own bytes, complete characters are returned as soon as they arrive.
    Otherwise a token's text depends on its neighbors, so a window of tokens is decoded with and
    without the new ones, and the difference is returned. An incomplete character is held back, and
    dropped if no more tokens come.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: list[int]) -> None:
        """Start after a prompt."""
        self._tokenizer = tokenizer
        start = _Bytes if tokenizer.is_bytes else _Window
        self._text: _Bytes | _Window = start(tokenizer, prompt_ids)

    def push(self, token: int) -> str:
        """Add a token, and return the text that became final with it."""
        return self._text.push(token)

    def special_text(self, token: int) -> str:
        """The name of a special token; empty for other tokens."""
        return self._tokenizer.special_text(token)

    def flush(self) -> str:
        """Return the text that is held back, without an incomplete character."""
        return self._text.flush()


def _utf8() -> codecs.IncrementalDecoder:
    """A decoder that replaces invalid bytes by U+FFFD and holds back incomplete characters."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


class _Bytes:
    def __init__(self, tokenizer: TextTokenizer, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._decoder = _utf8()
        for token in prompt_ids[-CONTEXT_TOKENS:]:  # the prompt may end within a character
            self._decoder.decode(tokenizer.bytes_of(token) or b"")
        self._is_in_half = bool(self._decoder.getstate()[0])
        is_empty = not any(tokenizer.bytes_of(token) for token in prompt_ids)
        self._is_first = tokenizer.drops_first_space and is_empty

    def push(self, token: int) -> str:
        text = self._decoder.decode(self._tokenizer.bytes_of(token) or b"")
        if text and self._is_in_half:
            self._is_in_half = False
            text = text.removeprefix(_HALF)  # it belongs to the prompt
        if text and self._is_first:
            self._is_first = False
            text = text.removeprefix(" ")
        return text

    def flush(self) -> str:
        return ""


class _Window:
    def __init__(self, tokenizer: TextTokenizer, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        num_context = CONTEXT_TOKENS
        while num_context < len(prompt_ids) and not tokenizer.decode(prompt_ids[-num_context:]):
            num_context *= 2  # only special tokens: some decoders strip a leading space
        while num_context < len(prompt_ids) and tokenizer.may_be_half(prompt_ids[-num_context]):
            num_context += (
                1  # some decoders drop bytes of a character whose first bytes are missing
            )
        self._ids = prompt_ids[-num_context:]
        self._window_start = 0
        self._read = len(self._ids)

    def push(self, token: int) -> str:
        self._ids.append(token)
        before, after = self._texts()
        if len(after) <= len(before) or after.endswith(_HALF):
            return ""
        if not self._tokenizer.may_be_half(self._ids[self._read]):
            self._window_start = self._read
        self._read = len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        before, after = self._texts()
        self._window_start, self._read = self._read, len(self._ids)
        left = after[len(before) :]
        return left.rstrip(_HALF) if self._tokenizer.may_end_in_half else left

    def _texts(self) -> tuple[str, str]:
        return (
            self._tokenizer.decode(self._ids[self._window_start : self._read]),
            self._tokenizer.decode(self._ids[self._window_start :]),
        )
