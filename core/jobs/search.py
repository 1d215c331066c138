"""Splits text into the terms that the history's search compares, on both databases alike.

SQLite and PostgreSQL would split and fold text by different rules. This module does both, and gives
the databases terms that are separated by one space; their indexes only compare them.

A text has two kinds of parts. *Words* consist of letters and digits of scripts with spaces between
words; a query finds whole words. *Runs* consist of scripts without such spaces, or of scripts that
add endings to a word without a separator (Han, kana, Hangul, Thai, Lao, Khmer, Myanmar, Tibetan and
others), or of pictographs; a query finds any part of a run. The index contains each character and
each pair of adjacent characters of a run. Queries of three or more characters are also compared
with the whole run, which is stored in the column ``search_runs``.

Folding follows Unicode's compatibility caseless matching (D147), with one deviation. Marks are
removed if they are accents or optional (Latin, Greek, Arabic, Hebrew; in Cyrillic, unless they make
another letter, so that й is not и). They are kept if they are part of the spelling, like the vowel
signs of Indic scripts and the voicing marks of kana.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

RULES = 1  # the version of these rules, in the column ``search_rules``; increase it on a change
MAX_WORD_CHARACTERS = 64  # PostgreSQL refuses lexemes of more than 2,046 bytes
MAX_QUERY_TERMS = 32
MAX_TERMS_BYTES = 900_000  # PostgreSQL refuses a tsvector with lexemes of over 2^20 bytes
# Scripts whose text forms runs.
_RUN_BLOCKS = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul's letters
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x31FF),  # radicals, kana, Bopomofo, compatibility letters of Hangul
    (0x3400, 0x4DBF),
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA960, 0xA9FF),  # Hangul, Javanese, Myanmar
    (0xAA00, 0xAADF),  # Cham, Myanmar, Tai Viet
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFAFF),
    (0x16FE0, 0x1B2FF),  # Tangut, Nüshu, more kana
    (0x20000, 0x3FFFF),  # Han
)
_ACCENTED = ("LATIN ", "GREEK ", "ARABIC ", "HEBREW ", "DIGIT ", "COPTIC ", "FEMININE", "MASCULINE")
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_ZERO_WIDTH_SPACE, _ZERO_WIDTH_NON_JOINER = "\u200b", "\u200c"
# Cyrillic letters whose mark is often omitted.
_SAME_LETTER = str.maketrans({"ё": "е", "ѐ": "е", "ѝ": "и"})
# The Turkish dotless i, and the Arabic tatweel, which only lengthens a word.
_NO_LETTER_OF_ITS_OWN = str.maketrans({"ı": "i", "ـ": None})
_SEPARATORS = {ord(_ZERO_WIDTH_SPACE): None, ord(_ZERO_WIDTH_NON_JOINER): None}
# These patterns match strings of kinds, one letter for each character: see ``_kind``.
_ACCENTS = re.compile("(?<=a)[mk]+")
_CYRILLIC = re.compile("c[mk]+")
_PARTS = re.compile("(?P<run>r[rmkzb]*)|(?P<word>[acw](?:[acwm]|(?<=[wm])z)*)")
_ASCII = re.compile("[a-z0-9]+")


class _Kinds(dict[int, str]):
    """The kind of each character, determined when it first occurs."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _kind(chr(code))
        return found


def _kind(character: str) -> str:
    """The kind of a character, as one letter.

    Letters and digits: ``a`` if their marks are removed, ``c`` if Cyrillic, ``r`` if part of a run,
    else ``w``. Marks: ``k`` in scripts that form runs, else ``m``. Ignored: ``x`` always, ``z`` and
    ``b`` in some scripts, where they separate nothing. A space: any other separator.
    """
    if character in (_ZERO_WIDTH_SPACE, _ZERO_WIDTH_NON_JOINER):
        return "b" if character == _ZERO_WIDTH_SPACE else "z"
    code, category = ord(character), unicodedata.category(character)
    if category == "Cf" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
        return "x"
    if category[0] in "LNM" and any(first <= code <= last for first, last in _RUN_BLOCKS):
        return "k" if category[0] == "M" else "r"
    if category == "So" or code in _SKIN_TONES:
        return "r"
    if category[0] == "M":
        return "m"
    if not character.isalnum():
        return " "
    name = unicodedata.name(character, "")
    return "c" if name.startswith("CYRILLIC ") else "a" if name.startswith(_ACCENTED) else "w"


_KINDS = _Kinds()


@dataclass(frozen=True, slots=True)
class Parts:
    """The words and runs of a text, in order."""

    words: tuple[str, ...]
    runs: tuple[str, ...]


def parts(text: str) -> Parts:
    """The folded words and runs of a text."""
    if text.isascii():
        return Parts(tuple(word[:MAX_WORD_CHARACTERS] for word in _ASCII.findall(text.lower())), ())
    folded = _folded(text)
    words, runs = [], []
    for match in _PARTS.finditer(folded.translate(_KINDS)):
        part = folded[match.start() : match.end()]
        if "z" in (kinds := part.translate(_KINDS)) or "b" in kinds:
            part = unicodedata.normalize("NFC", part.translate(_SEPARATORS))
        if match["word"]:
            words.append(part[:MAX_WORD_CHARACTERS])
        else:
            runs.append(part)
    return Parts(tuple(words), tuple(runs))


def _folded(text: str) -> str:
    """Fold case, compatibility forms and accents."""
    text = unicodedata.normalize("NFKD", text.casefold())
    text = unicodedata.normalize("NFKD", text.casefold()).translate(_NO_LETTER_OF_ITS_OWN)
    kinds = text.translate(_KINDS)
    if "x" in kinds:
        text = "".join(c for c, kind in zip(text, kinds, strict=True) if kind != "x")
        text = unicodedata.normalize("NFKD", text)
        kinds = text.translate(_KINDS)
    if "m" in kinds:
        text = _without_accents(text, kinds)
    return unicodedata.normalize("NFC", text)


def _without_accents(text: str, kinds: str) -> str:
    if "c" in kinds:
        pieces, end = [], 0
        for match in _CYRILLIC.finditer(kinds):
            letter = unicodedata.normalize("NFC", text[match.start() : match.end()])[0]
            pieces += [text[end : match.start()], letter.translate(_SAME_LETTER)]
            end = match.end()
        text = "".join([*pieces, text[end:]])
        kinds = text.translate(_KINDS)
    pieces, end = [], 0
    for match in _ACCENTS.finditer(kinds):
        pieces.append(text[end : match.start()])
        end = match.end()
    return "".join([*pieces, text[end:]])


def _terms(found: Parts) -> Iterator[str]:
    yield from found.words
    for run in found.runs:
        yield from run
        yield from map("".join, pairwise(run))


def search_columns(*texts: str) -> dict[str, str]:
    """The search columns of a row that contains these texts: distinct terms, distinct runs."""
    all_parts = [parts(text) for text in texts]
    terms = dict.fromkeys(term for found in all_parts for term in _terms(found))
    runs = dict.fromkeys(run for found in all_parts for run in found.runs)
    return {"search_text": _joined(terms), "search_runs": " ".join(runs)}


def _joined(terms: dict[str, None]) -> str:
    joined = " ".join(terms)
    if len(joined) * 4 <= MAX_TERMS_BYTES or len(joined.encode()) <= MAX_TERMS_BYTES:
        return joined
    return joined.encode()[:MAX_TERMS_BYTES].decode(errors="ignore").rpartition(" ")[0]


@dataclass(frozen=True, slots=True)
class Query:
    """What a row must contain to be found.

    Attributes:
        terms: its index contains all of these.
        runs: its runs contain each of these; omitted if the terms suffice.
    """

    terms: tuple[str, ...]
    runs: tuple[str, ...]


def parse_search(text: str) -> Query:
    """Parse the text of a search field."""
    found = parts(text)
    needed = list(found.words)
    for run in found.runs:
        needed += [run] if len(run) < 3 else map("".join, pairwise(run))
    terms = tuple(dict.fromkeys(needed))[:MAX_QUERY_TERMS]
    long_runs = [run for run in found.runs if len(run) > 2]
    return Query(terms, tuple(dict.fromkeys(long_runs))[:MAX_QUERY_TERMS])


def fts5_query(terms: tuple[str, ...]) -> str:
    """The terms as an FTS5 expression; they contain neither quotes nor spaces."""
    return " ".join(f'"{term}"' for term in terms)


def tsquery(terms: tuple[str, ...]) -> str:
    """The terms as the text of a ``tsquery``."""
    return " & ".join(f"'{term}'" for term in terms)
