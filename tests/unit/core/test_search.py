"""The words of the history's search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.search import (
    MAX_QUERY_WORDS,
    MAX_WORD_CHARACTERS,
    fts5_query,
    query_words,
    search_text,
    tsquery,
    words,
)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("Größe naïve CAFÉ", ["grosse", "naive", "cafe"]),
        ("GPT-2 and x^2", ["gpt", "2", "and", "x", "2"]),
        ("snake_case", ["snake", "case"]),
        ("你好world", ["你", "好", "world"]),
        ("ﬁne ２０", ["fine", "20"]),
        ("Größe it's İstanbul", ["grosse", "it", "s", "istanbul"]),
        ("カタカナ مرحبا", ["カ", "タ", "カ", "ナ", "مرحبا"]),
        ('"quoted" OR NEAR(a b) col:x*', ["quoted", "or", "near", "a", "b", "col", "x"]),
        ("😀", []),
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


@given(st.text())
def test_cutting_words_again_changes_nothing(text: str) -> None:
    assert search_text(search_text(text)) == search_text(text)
    for word in words(text):
        assert query_words(word) == [word]


def test_long_words_and_long_queries_are_bounded() -> None:
    assert words("a" * 1000) == ["a" * MAX_WORD_CHARACTERS]
    assert len(query_words(" ".join(f"w{n}" for n in range(100)))) == MAX_QUERY_WORDS


def test_the_words_of_prompt_and_text_stand_once_each_in_order() -> None:
    assert search_text("b a", "c a") == "b a c"
