"""What each token is in bytes, for the decoders of a tokenizer.json where that can be said.

Knows nothing of a vocabulary: a word of it goes in, bytes come out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from textmill.tokenizing.pretokenizers import LETTERS

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class BytesOf:
    """A decoder as a function of single words.

    Attributes:
        word: the bytes of a word of the vocabulary.
        drops_first_space: one space at the beginning of the whole text is no part of it.
    """

    word: Callable[[str], bytes]
    drops_first_space: bool = False

    def __call__(self, word: str) -> bytes:
        """The bytes of a word of the vocabulary."""
        return self.word(word)


def bytes_of_tokens(decoder: object) -> BytesOf | None:
    """A decoder of a tokenizer.json, word by word; ``None`` where words hang on one another.

    Known are ByteLevel and what models in SentencePiece's manner have: replacements within a word,
    bytes by name, joined without spaces, one space stripped from the whole.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return BytesOf(_from_letters)
    drops_first_space = steps[-1:] == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    inner, kinds = (steps[:-1], kinds[:-1]) if drops_first_space else (steps, kinds)
    if kinds[-1:] != ["Fuse"] or not _is_plain(inner[:-1]):
        return None
    pairs = [(s["pattern"]["String"], s["content"]) for s in inner if s["type"] == "Replace"]
    has_bytes = "ByteFallback" in kinds

    def word_to_bytes(word: str) -> bytes:
        for old, new in pairs:
            word = word.replace(old, new)
        byte = _BYTE.fullmatch(word) if has_bytes else None
        return bytes([int(byte[1], 16)]) if byte else word.encode()

    return BytesOf(word_to_bytes, drops_first_space)


def is_byte(word: str) -> bool:
    """Whether a word of a vocabulary stands for a byte by its name."""
    return _BYTE.fullmatch(word) is not None


def _steps(decoder: object) -> list[Mapping[str, Any]]:
    if not isinstance(decoder, Mapping):
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders") or [] for step in _steps(inner)]
    return [decoder]


def _is_plain(steps: list[Mapping[str, Any]]) -> bool:
    """Replacements of one string by another, and then bytes by name, if at all."""
    replacing = steps[:-1] if steps and steps[-1].get("type") == "ByteFallback" else steps
    return all(
        step.get("type") == "Replace"
        and isinstance(step.get("pattern"), Mapping)
        and isinstance(step["pattern"].get("String"), str)
        and isinstance(step.get("content"), str)
        for step in replacing
    )


def _from_letters(word: str) -> bytes:
    found = [LETTERS.get(letter) for letter in word]
    known = [byte for byte in found if byte is not None]
    return bytes(known) if len(known) == len(found) else word.encode()
