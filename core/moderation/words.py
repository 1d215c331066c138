"""A word list: words and phrases, found whatever their case, width, spacing and invisible parts.

In scripts that put spaces between words, only whole words are found; in those that do not (Chinese,
Japanese, Thai, Lao, Khmer, Burmese), any occurrence.
"""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
                        "\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")  # fmt: skip
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


class WordList:
    """The words of a file: one word or phrase a line; lines that begin with # are comments."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            phrase = "" if line.lstrip().startswith("#") else " ".join(_plain(line).split())
            if phrase:
                self._lines.setdefault(phrase, number)
        longest_first = sorted(self._lines, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_pattern, longest_first)) or r"(?!)")

    def __len__(self) -> int:
        """The number of different phrases."""
        return len(self._lines)

    def first_in(self, text: str) -> int | None:
        """The line of the first phrase that a text contains."""
        found = self._pattern.search(_plain(text))
        return None if found is None else self._lines[" ".join(found[0].split())]


def _plain(text: str) -> str:
    """A text in one case and width, without invisible characters."""
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return unicodedata.normalize("NFKC", folded)


def _pattern(phrase: str) -> str:
    body = r"\s+".join(map(re.escape, phrase.split()))
    before = r"(?<!\w)" if _needs_boundary(phrase[0]) else ""
    after = r"(?!\w)" if _needs_boundary(phrase[-1]) else ""
    return before + body + after


def _needs_boundary(character: str) -> bool:
    return re.match(r"\w", character) is not None and not _WITHOUT_SPACES.match(character)
