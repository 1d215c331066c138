"""What the history's search compares: the same on SQLite and PostgreSQL.

Each database would cut and fold text by rules of its own. We do it here, and hand both of them
plain terms with one space between; their indexes then only compare.

A text has two kinds of parts. *Words* are runs of letters and digits in scripts that put spaces
between words: a query finds them whole. *Runs* are stretches of scripts that do not, or that add
endings to a word without a mark between (Han, kana, Hangul, Thai, Lao, Khmer, Myanmar, Tibetan and
their kin), and of pictographs: a query finds them anywhere within a run. The index holds each
character and each pair of neighbours of a run; three or more in a row are then compared with the
run itself, which the column ``search_runs`` keeps.

Folding follows Unicode's compatibility caseless matching (D147). Deviation: marks fall away where
they are an accent or optional (Latin, Greek, Arabic, Hebrew; in Cyrillic all but those of letters
of their own, so that й is not и), and stay where they are a part of the spelling, as vowel signs of
Indic scripts and voicing marks of kana are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

RULES = 1  # the number of these rules, in the column ``search_rules``; raise it when they change
MAX_WORD_CHARACTERS = 64  # PostgreSQL refuses a lexeme over 2,046 bytes
MAX_QUERY_TERMS = 32
MAX_TERMS_BYTES = 900_000  # PostgreSQL refuses a tsvector whose lexemes pass 2^20 bytes
# Scripts that are searched within: without spaces between words, or with endings added to them.
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
# Cyrillic letters whose mark readers leave out as often as not.
_SAME_LETTER = str.maketrans({"ё": "е", "ѐ": "е", "ѝ": "и"})
_NO_LETTER_OF_ITS_OWN = str.maketrans({"ı": "i", "ـ": None})  # Turkish i; the Arabic stretching bar
_SEPARATORS = {ord(_ZERO_WIDTH_SPACE): None, ord(_ZERO_WIDTH_NON_JOINER): None}
# The patterns are over kinds, one letter a character: see ``_kind``.
_ACCENTS = re.compile("(?<=a)[mk]+")
_CYRILLIC = re.compile("c[mk]+")
_PARTS = re.compile("(?P<run>r[rmkzb]*)|(?P<word>[acw](?:[acwm]|(?<=[wm])z)*)")
_ASCII = re.compile("[a-z0-9]+")


class _Kinds(dict[int, str]):
    """The kind of each character, found out when it first occurs."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _kind(chr(code))
        return found


def _kind(character: str) -> str:
    """One letter for what a character is to the search.

    ``a``, ``c``, ``w``: a letter or digit whose marks fall away, Cyrillic, any other. ``r``: of a
    run; ``k``: a mark of such a script; ``m``: any other mark. ``x``: nothing, as a joiner is;
    ``z`` and ``b``: nothing in some scripts and a separator elsewhere. Blank: a separator.
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
    """What a text consists of, in order."""

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
    """A text without case, compatibility forms and accents."""
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
    """The columns of a row with some texts: its distinct terms, and its distinct runs."""
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
    """What a row must have.

    Attributes:
        terms: all of these in its index.
        runs: each of these within one of its runs; only those that the terms do not settle.
    """

    terms: tuple[str, ...]
    runs: tuple[str, ...]


def parse_search(text: str) -> Query:
    """What a query asks for."""
    found = parts(text)
    needed = list(found.words)
    for run in found.runs:
        needed += [run] if len(run) < 3 else map("".join, pairwise(run))
    terms = tuple(dict.fromkeys(needed))[:MAX_QUERY_TERMS]
    long_runs = [run for run in found.runs if len(run) > 2]
    return Query(terms, tuple(dict.fromkeys(long_runs))[:MAX_QUERY_TERMS])


def fts5_query(terms: tuple[str, ...]) -> str:
    """The terms as an FTS5 expression; they hold no quote and no blank."""
    return " ".join(f'"{term}"' for term in terms)


def tsquery(terms: tuple[str, ...]) -> str:
    """The terms as the text of a ``tsquery``."""
    return " & ".join(f"'{term}'" for term in terms)
