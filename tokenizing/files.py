"""Inspects a tokenizer.json before it is used: whether it is safe, and how long its tokens are.

Knows nothing of the library that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from textmill.tokenizing.pretokenizers import LETTERS, LINEAR_PATTERNS

_KNOWN_NORMALIZERS = {
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Prepend",
    "Replace",
    "BertNormalizer",
    "Precompiled",
    "ByteLevel",
}
_KNOWN_PRE_TOKENIZERS = {
    "Sequence",
    "ByteLevel",
    "Digits",
    "Split",
    "Metaspace",
    "Whitespace",
    "WhitespaceSplit",
    "BertPreTokenizer",
    "Punctuation",
    "CharDelimiterSplit",
    "UnicodeScripts",
}
_KNOWN_PROCESSORS = {"Sequence", "ByteLevel", "BertProcessing", "RobertaProcessing"}
_MOST_PIECES = 8  # of a template: the text and the tokens around it


def is_known(document: Mapping[str, Any]) -> bool:
    """Whether the time and memory of tokenizing are known to depend on the text's length alone."""
    normalizers = _steps(document.get("normalizer"))
    cuts = _steps(document.get("pre_tokenizer"))
    return (
        all(step.get("type") in _KNOWN_NORMALIZERS and not _grows(step) for step in normalizers)
        and all(step.get("type") in _KNOWN_PRE_TOKENIZERS for step in cuts)
        and all(pattern in LINEAR_PATTERNS for pattern in _patterns([normalizers, cuts]))
        and all(_is_known_processor(step) for step in _steps(document.get("post_processor")))
    )


def _grows(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer can lengthen a text; a chain of them could do so without limit."""
    pattern, content = step.get("pattern"), step.get("content", step.get("prepend", ""))
    replaced = pattern.get("String") if isinstance(pattern, Mapping) else None
    return len(str(content)) > max(1, len(str(replaced or "")))


def _is_known_processor(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "TemplateProcessing":
        return len(step.get("single") or []) <= _MOST_PIECES
    return step.get("type") in _KNOWN_PROCESSORS


def _patterns(part: object) -> Iterator[object]:
    """Every regular expression in a part of a tokenizer.json."""
    waiting = [part]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if "Regex" in part:
                yield part["Regex"]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


_KEEPS_ALL = {"ByteLevel", "Digits", "Split"}  # pre-tokenizers that keep all of a text


@dataclass(frozen=True, slots=True)
class Bound:
    """The longest piece of text that one token can represent.

    Attributes:
        most_bytes: its length in UTF-8.
        dropped: bytes that no token represents; tokenizing may omit them.
    """

    most_bytes: int
    dropped: bytes = b""

    def least_tokens(self, text: str) -> int:
        """A lower bound on the number of tokens of a text."""
        kept = text.encode("utf-8", "surrogatepass").translate(None, self.dropped)
        return -(-len(kept) // self.most_bytes)


def bound(document: Mapping[str, Any]) -> Bound | None:
    """The bound for a tokenizer; ``None`` if one token can represent a text of any length.

    Vocabularies of bytes have a bound if the text is not normalized and no byte is unknown.
    """
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or model.get("type") != "BPE":
        return None
    if not isinstance(vocabulary, Mapping) or not vocabulary:
        return None
    added = [token for token in document.get("added_tokens") or [] if isinstance(token, Mapping)]
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None  # such a token includes any number of spaces
    texts = [str(token.get("content", "")) for token in added]
    longest = max((len(text.encode()) for text in texts), default=1)
    steps = _steps(document.get("pre_tokenizer"))
    normalizers = _steps(document.get("normalizer"))
    is_byte_level = any(step.get("type") == "ByteLevel" for step in steps)
    if is_byte_level and not normalizers and _keep_all(steps) and not model.get("unk_token"):
        dropped = bytes(byte for letter, byte in LETTERS.items() if letter not in vocabulary)
        return Bound(max(longest, *(len(token) for token in vocabulary)), dropped)
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    is_plain = all(_is_space_mark(step) for step in normalizers)
    if model.get("byte_fallback") and has_bytes and is_plain and not steps:
        return Bound(max(longest, *(len(token.encode()) for token in vocabulary)))
    return None


def _steps(part: object) -> list[Mapping[str, Any]]:
    if not isinstance(part, Mapping):
        return []
    for name in ("normalizers", "pretokenizers", "processors"):
        if isinstance(part.get(name), list):
            return [step for inner in part[name] for step in _steps(inner)]
    return [part]


def _keep_all(steps: list[Mapping[str, Any]]) -> bool:
    return all(
        step.get("type") in _KEEPS_ALL and step.get("behavior") != "Removed" for step in steps
    )


def _is_space_mark(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer replaces spaces with a mark, or puts one before the text."""
    if step.get("type") == "Prepend":
        return True
    return step.get("type") == "Replace" and (step.get("pattern"), step.get("content")) == (
        {"String": " "},
        "▁",
    )
