"""Examples as tokens, cut the way the server cuts a prompt.

Knows nothing of files or of training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from textmill.finetune.errors import ConfigError
from textmill.finetune.examples import Example
from textmill.tokenizing.safe_tokenizer import SafeTokenizer, TokenizerFault

IGNORED = -100  # a label that the loss passes over, by PyTorch's convention


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text in tokens.

    Attributes:
        ids: token ids.
        is_learned: for each, whether the loss counts it.
        num_cut: tokens that were left out at the end for length.
    """

    ids: list[int]
    is_learned: list[bool]
    num_cut: int = 0

    @property
    def labels(self) -> list[int]:
        """The ids where they are learned, ``IGNORED`` elsewhere."""
        pairs = zip(self.ids, self.is_learned, strict=True)
        return [token if learned else IGNORED for token, learned in pairs]

    @property
    def num_learned(self) -> int:
        """Tokens that the loss counts; the first of a text has nothing before it to come from."""
        return sum(self.is_learned[1:])


class Encoder:
    """A model's tokenizer, with the token that ends a text."""

    def __init__(self, tokenizer_json: Path, eos_token_id: int, max_tokens: int) -> None:
        """Read the tokenizer.

        Args:
            tokenizer_json: the file that the server reads too.
            eos_token_id: written behind every example, so that the model learns to end.
            max_tokens: of an example, that token included.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            self._tokenizer = SafeTokenizer(tokenizer_json.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, TokenizerFault) as error:
            raise ConfigError(f"{tokenizer_json} cannot be read: {error}.") from error
        self._eos_token_id = eos_token_id
        self.max_tokens = max_tokens

    def parts(self, example: Example) -> tuple[list[int], list[bool]]:
        """The example's own tokens, whole and without an end, and which of them are learned."""
        encoded = self._in_one(example) or self._one_by_one(example)
        return encoded.ids, encoded.is_learned

    def whole(self, example: Example) -> Encoded:
        """All of an example, with its end, however long."""
        ids, is_learned = self.parts(example)
        return Encoded([*ids, self._eos_token_id], [*is_learned, True])

    def encode(self, example: Example) -> Encoded:
        """An example as it is trained on: with its end, or cut where it is too long."""
        whole = self.whole(example)
        num_cut = max(0, len(whole.ids) - self.max_tokens)
        kept = slice(self.max_tokens)
        return Encoded(whole.ids[kept], whole.is_learned[kept], num_cut)

    def _in_one(self, example: Example) -> Encoded | None:
        """All parts as one text, if each beginning is cut as the server would cut it alone."""
        whole = self._ids(example.text)
        is_learned: list[bool] = []
        end = 0
        for part in example.parts:
            end += len(part.text)
            begun = self._ids(example.text[:end])
            if whole[: len(begun)] != begun:
                return None
            is_learned += [part.is_learned] * (len(begun) - len(is_learned))
        return Encoded(whole, is_learned)

    def _one_by_one(self, example: Example) -> Encoded:
        ids: list[int] = []
        is_learned: list[bool] = []
        for part in example.parts:
            own = self._ids(part.text, is_first=not ids)
            ids += own
            is_learned += [part.is_learned] * len(own)
        return Encoded(ids, is_learned)

    def _ids(self, text: str, *, is_first: bool = True) -> list[int]:
        return self._tokenizer.encode(text, adds_ends=is_first)


def pack(texts: Iterable[Encoded], max_tokens: int) -> list[Encoded]:
    """Texts behind one another in blocks of a length; nothing is cut off.

    A text that goes on in the next block is seen there without its beginning, and the end-of-text
    token alone parts one text from the next, as GPT-2 was trained.
    """
    ids: list[int] = []
    is_learned: list[bool] = []
    for text in texts:
        ids += text.ids
        is_learned += text.is_learned
    starts = range(0, len(ids), max_tokens)
    return [
        Encoded(ids[start : start + max_tokens], is_learned[start : start + max_tokens])
        for start in starts
    ]
