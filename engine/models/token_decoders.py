"""The bytes of each token, for decoders of a tokenizer.json that decode token by token.

Knows nothing of a vocabulary: its functions map a vocabulary entry to bytes.
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
    """A decoder as a function of single vocabulary entries.

    Attributes:
        decode: returns the bytes of a vocabulary entry.
        drops_first_space: whether one space at the start of the whole text is removed.
    """

    decode: Callable[[str], bytes]
    drops_first_space: bool = False

    def __call__(self, entry: str) -> bytes:
        """Return the bytes of a vocabulary entry."""
        return self.decode(entry)


def bytes_of_tokens(decoder: object) -> BytesOf | None:
    """A token-by-token form of a tokenizer.json's decoder; ``None`` if tokens affect each other.

    Supported are ByteLevel and the decoders of SentencePiece-like models: replacements within an
    entry, bytes by name, joined without spaces, one space stripped from the whole text.
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

    def entry_to_bytes(entry: str) -> bytes:
        for old, new in pairs:
            entry = entry.replace(old, new)
        byte = _BYTE.fullmatch(entry) if has_bytes else None
        return bytes([int(byte[1], 16)]) if byte else entry.encode()

    return BytesOf(entry_to_bytes, drops_first_space)


def is_byte(entry: str) -> bool:
    """Whether a vocabulary entry is the name of a byte, such as ``<0x0A>``."""
    return _BYTE.fullmatch(entry) is not None


def _steps(decoder: object) -> list[Mapping[str, Any]]:
    if not isinstance(decoder, Mapping):
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders") or [] for step in _steps(inner)]
    return [decoder]


def _is_plain(steps: list[Mapping[str, Any]]) -> bool:
    """Whether the steps are string replacements, optionally followed by bytes by name."""
    replacing = steps[:-1] if steps and steps[-1].get("type") == "ByteFallback" else steps
    return all(
        step.get("type") == "Replace"
        and isinstance(step.get("pattern"), Mapping)
        and isinstance(step["pattern"].get("String"), str)
        and isinstance(step.get("content"), str)
        for step in replacing
    )


def _from_letters(entry: str) -> bytes:
    found = [LETTERS.get(letter) for letter in entry]
    known = [byte for byte in found if byte is not None]
    return bytes(known) if len(known) == len(found) else entry.encode()
