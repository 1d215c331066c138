"""Examples as tokens, tokenized exactly as the server tokenizes a prompt.

Knows nothing of files or of training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from textmill.finetune.errors import ConfigError
from textmill.finetune.examples import Example
from textmill.tokenizing.safe_tokenizer import SafeTokenizer, TokenizerFault

IGNORED = -100  # the label that PyTorch's cross-entropy ignores by default


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example, or a block of packed examples, as tokens.

    Attributes:
        ids: token ids.
        is_learned: for each token, whether the loss counts it.
        num_cut: tokens cut from the end.
    """

    ids: list[int]
    is_learned: list[bool]
    num_cut: int = 0

    @property
    def labels(self) -> list[int]:
        """The ids of learned tokens, and ``IGNORED`` for the others."""
        pairs = zip(self.ids, self.is_learned, strict=True)
        return [token if learned else IGNORED for token, learned in pairs]

    @property
    def num_learned(self) -> int:
        """Tokens that the loss counts; the first token has no context to be predicted from."""
        return sum(self.is_learned[1:])


class Encoder:
    """A model's tokenizer and its end-of-text token."""

    def __init__(self, tokenizer_json: Path, eos_token_id: int, max_tokens: int) -> None:
        """Read the tokenizer.

        Args:
            tokenizer_json: the file that the server reads as well.
            eos_token_id: appended to every example, so that the model learns to end.
            max_tokens: the maximum length of an example, including that token.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            self._tokenizer = SafeTokenizer(tokenizer_json.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, TokenizerFault) as error:
            raise ConfigError(f"{tokenizer_json} cannot be read: {error}.") from error
        self._eos_token_id = eos_token_id
        self.max_tokens = max_tokens

    def encode_parts(self, example: Example) -> tuple[list[int], list[bool]]:
        """The example's tokens, untruncated and without end of text, and which are learned."""
        encoded = self._encode_at_once(example) or self._encode_separately(example)
        return encoded.ids, encoded.is_learned

    def encode_untruncated(self, example: Example) -> Encoded:
        """The example's tokens with end of text, however long."""
        ids, is_learned = self.encode_parts(example)
        return Encoded([*ids, self._eos_token_id], [*is_learned, True])

    def encode(self, example: Example) -> Encoded:
        """The example's tokens with end of text, truncated to ``max_tokens``."""
        whole = self.encode_untruncated(example)
        num_cut = max(0, len(whole.ids) - self.max_tokens)
        kept = slice(self.max_tokens)
        return Encoded(whole.ids[kept], whole.is_learned[kept], num_cut)

    def _encode_at_once(self, example: Example) -> Encoded | None:
        """Encode all parts as one text.

        ``None`` if a part's end is not a token boundary: the server tokenizes a prompt alone, so
        its tokens must be a prefix of the example's.
        """
        whole = self._ids(example.text)
        is_learned: list[bool] = []
        end = 0
        for part in example.parts:
            end += len(part.text)
            prefix = self._ids(example.text[:end])
            if whole[: len(prefix)] != prefix:
                return None
            is_learned += [part.is_learned] * (len(prefix) - len(is_learned))
        return Encoded(whole, is_learned)

    def _encode_separately(self, example: Example) -> Encoded:
        ids: list[int] = []
        is_learned: list[bool] = []
        for part in example.parts:
            own = self._ids(part.text, is_first=not ids)
            ids += own
            is_learned += [part.is_learned] * len(own)
        return Encoded(ids, is_learned)

    def _ids(self, text: str, *, is_first: bool = True) -> list[int]:
        return self._tokenizer.encode(text, adds_ends=is_first)


def pack(examples: Iterable[Encoded], max_tokens: int) -> list[Encoded]:
    """Concatenate examples and split them into blocks of ``max_tokens``; no token is lost.

    An example may continue in the next block, where its beginning is not visible. Only the
    end-of-text token separates examples; attention is not masked between them. GPT-2 was trained in
    this way.
    """
    ids: list[int] = []
    is_learned: list[bool] = []
    for example in examples:
        ids += example.ids
        is_learned += example.is_learned
    starts = range(0, len(ids), max_tokens)
    return [
        Encoded(ids[start : start + max_tokens], is_learned[start : start + max_tokens])
        for start in starts
    ]
