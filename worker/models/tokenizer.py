"""Text to tokens and back, a token at a time, without ever showing half a character."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

CONTEXT_TOKENS = 8  # enough of the prompt for the first new token to find its space
_HALF = "\ufffd"


class TextTokenizer:
    """A model's tokenizer.json."""

    def __init__(self, path: Path) -> None:
        """Read a tokenizer.json."""
        self._json = path.read_text(encoding="utf-8")
        self._tokenizer = Tokenizer.from_str(self._json)
        self._texts: dict[int, str] = {}  # traces ask for the same ones over and over
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def json(self) -> str:
        """The whole of tokenizer.json, so that another process counts alike."""
        return self._json

    @property
    def largest_id(self) -> int:
        """The largest token id that a text can be cut into; -1 where there is none."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens as the file says."""
        return list(self._tokenizer.encode(text).ids)

    def text_of(self, token: int) -> str:
        """A token by itself, for showing; half a character is shown as U+FFFD."""
        text = self._texts.get(token)
        if text is None:
            text = str(self._tokenizer.decode([token], skip_special_tokens=False))
            self._texts[token] = text
        return text

    def decode(self, ids: list[int]) -> str:
        """Text of tokens; special ones are left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class IncrementalDetokenizer:
    """The continuation's text as its tokens come.

    A token's text depends on its neighbours (spaces, characters of several bytes), so a window of
    tokens is decoded with and without the new ones, and the difference is what was added; what
    ends within a character waits.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: list[int]) -> None:
        """Start after the prompt."""
        self._tokenizer = tokenizer
        num_context = CONTEXT_TOKENS
        while num_context < len(prompt_ids) and not tokenizer.decode(prompt_ids[-num_context:]):
            num_context *= 2  # special tokens alone: some decoders strip the space after nothing
        self._ids = prompt_ids[-num_context:]
        self._window_start = 0
        self._read = len(self._ids)

    def push(self, token: int) -> str:
        """The text that became certain with one more token."""
        self._ids.append(token)
        before, after = self._texts()
        if len(after) <= len(before) or after.endswith(_HALF):
            return ""
        self._window_start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """What still waits when no token comes any more."""
        before, after = self._texts()
        self._window_start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return (
            self._tokenizer.decode(self._ids[self._window_start : self._read]),
            self._tokenizer.decode(self._ids[self._window_start :]),
        )
