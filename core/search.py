"""Words of a text as the history's search sees them: the same on SQLite and PostgreSQL.

Each database would cut and fold text by rules of its own. We cut it here, and hand both of them
plain words with one space between; their indexes then only compare. Letters are folded by case and
by accent (Unicode's compatibility decomposition); scripts written without spaces count one
character as one word.
"""

from __future__ import annotations

import re
import unicodedata

MAX_WORD_CHARACTERS = 64  # PostgreSQL refuses a lexeme over 2,046 bytes
MAX_QUERY_WORDS = 32
_WORD = re.compile(
    # Han, kana and their extensions are one word a character; otherwise letters and digits.
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|"
    r"[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def words(text: str) -> list[str]:
    """The folded words of a text, in order."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(character for character in folded if not unicodedata.combining(character))
    return [word[:MAX_WORD_CHARACTERS] for word in _WORD.findall(bare.casefold())]


def search_text(*texts: str) -> str:
    """The distinct words of some texts in their order, as the ``search_text`` column holds them."""
    return " ".join(dict.fromkeys(word for text in texts for word in words(text)))


def query_words(query: str) -> list[str]:
    """The distinct words that a query asks for, all of which must be there."""
    return list(dict.fromkeys(words(query)))[:MAX_QUERY_WORDS]


def fts5_query(query: list[str]) -> str:
    """The words as an FTS5 expression; they hold letters and digits alone."""
    return " ".join(f'"{word}"' for word in query)


def tsquery(query: list[str]) -> str:
    """The words as the text of a ``tsquery``."""
    return " & ".join(f"'{word}'" for word in query)
