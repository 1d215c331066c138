"""The words of the history's search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.search import MAX_WORD_CHARACTERS, fts5_query, query_words, search_text, tsquery, words


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("Größe naïve CAFÉ", ["grosse", "naive", "cafe"]),
        ("GPT-2 and x^2", ["gpt", "2", "and", "x", "2"]),
        ("snake_case", ["snake", "case"]),
        ("你好world", ["你", "好", "world"]),
        ("ﬁne ２０", ["fine", "20"]),
        ("…!?", []),
        ("", []),
    ],
)
def test_a_text_is_cut_into_folded_words(text: str, cut: list[str]) -> None:
    assert words(text) == cut


@given(st.text())
def test_words_are_what_both_databases_take_for_one_word(text: str) -> None:
    for word in words(text):
        assert 0 < len(word) <= MAX_WORD_CHARACTERS
        assert not any(character.isspace() or character in "'\"\\&|!()*:\0" for character in word)
    stored = search_text(text)
    assert stored.split(" ") == list(dict.fromkeys(words(text))) or stored == ""


@given(st.text())
def test_a_text_is_found_by_its_own_words(text: str) -> None:
    assert set(query_words(text)) <= set(search_text(text).split(" "))


def test_queries_ask_for_every_word() -> None:
    assert fts5_query(["a", "b"]) == '"a" "b"'
    assert tsquery(["a", "b"]) == "'a' & 'b'"
