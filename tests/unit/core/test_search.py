"""The terms of the history's search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.core.jobs.search import (
    MAX_QUERY_TERMS,
    MAX_TERMS_BYTES,
    MAX_WORD_CHARACTERS,
    Query,
    fts5_query,
    parse_search,
    parts,
    search_columns,
    tsquery,
)

TEXTS = st.text() | st.text(
    st.sampled_from(
        "aÀéİıß ёйиї́̆क्षिनी़กำั้ຳမ္လេខ្가ㄱᄒ한國ががガｶﾞ゛ー😀👍🏽1²٣ـَאּΣς.\ufe0f\u200d\u200b\u200c\u2028"
    )
)


@pytest.mark.parametrize(
    ("text", "words", "runs"),
    [
        ("Hello, World!", ["hello", "world"], []),
        ("Größe naïve CAFÉ", ["grosse", "naive", "cafe"], []),
        ("GPT-2 and x^2", ["gpt", "2", "and", "x", "2"], []),
        ("snake_case", ["snake", "case"], []),
        ("你好world", ["world"], ["你好"]),
        ("ﬁne ２０ ＡＢＣ", ["fine", "20", "abc"], []),
        ("it's İstanbul ISPARTA ısparta", ["it", "s", "istanbul", "isparta", "isparta"], []),
        ("Σίσυφος ΣΊΣΥΦΟΣ", ["σισυφοσ", "σισυφοσ"], []),
        ("Новый ёж, за́мок, їжак", ["новый", "еж", "замок", "їжак"], []),
        ("كِتَابٌ كتـاب", ["كتاب", "كتاب"], []),
        ("שָׁלוֹם", ["שלום"], []),
        ("हिन्दी हनद", ["हिन्दी", "हनद"], []),
        ("क्‍ष क्ष", ["क्ष", "क्ष"], []),
        ("தமிழ் বাংলা", ["தமிழ்", "বাংলা"], []),
        ("ガガーリン ｶﾞｶﾞｰﾘﾝ", [], ["ガガーリン", "ガガーリン"]),
        ("한국어를 배운다", [], ["한국어를", "배운다"]),
        ("ภาษาไทย ລາວ ខ្មែរ မြန်မာ", [], ["ภาษาไทย", "ລາວ", "ខ្មែរ", "မြန်မာ"]),
        ("a😀b 👩‍💻 ❤️ 👍🏽", ["a", "b"], ["😀", "👩💻", "❤", "👍🏽"]),
        ("1️⃣ net­work", ["1", "network"], []),
        ('"quoted" OR NEAR(a b) col:x*', ["quoted", "or", "near", "a", "b", "col", "x"], []),
        ("…!?", [], []),
        ("", [], []),
    ],
)
def test_a_text_is_cut_into_folded_words_and_runs(
    text: str, words: list[str], runs: list[str]
) -> None:
    assert (list(parts(text).words), list(parts(text).runs)) == (words, runs)


@given(TEXTS)
def test_terms_are_what_both_databases_take_for_one(text: str) -> None:
    columns = search_columns(text)
    terms = columns["search_text"].split(" ") if columns["search_text"] else []
    assert len(set(terms)) == len(terms)
    for term in [*terms, *parse_search(text).terms]:
        assert 0 < len(term) <= MAX_WORD_CHARACTERS
        assert not any(character.isspace() or character in "'\"\\&|!()*:\0" for character in term)


def matches(query: Query, *texts: str) -> bool:
    """Find as a database does, in plain Python."""
    columns = search_columns(*texts)
    has_terms = set(query.terms) <= set(columns["search_text"].split(" "))
    return has_terms and all(run in columns["search_runs"] for run in query.runs)


@given(TEXTS, TEXTS)
def test_a_text_is_found_by_all_of_its_words_and_runs(text: str, other: str) -> None:
    query = parse_search(text)
    assert matches(query, text)
    assert matches(query, other, text)


@given(st.text("国東京한글ภา้😀👍🏽ガカ", min_size=1, max_size=12), st.data())
def test_a_run_is_found_by_each_of_its_parts(run: str, data: st.DataObject) -> None:
    (whole,) = parts(run).runs
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start + 1, len(whole)))
    assert matches(parse_search(whole[start:end]), run)
    other = data.draw(st.text("国東京", min_size=3, max_size=5))
    assert matches(parse_search(other), run) == (other in whole)


@given(TEXTS)
def test_cutting_again_changes_nothing(text: str) -> None:
    once = parts(text)
    again = parts(" ".join([*once.words, *once.runs]))
    assert set(again.words) == set(once.words)
    assert set(again.runs) == set(once.runs)


@pytest.mark.parametrize(
    ("query", "text", "is_found"),
    [
        ("ภาษาไทย", "ภาษาไทยเป็นภาษา", True),
        ("ไทยเป็น", "ภาษาไทยเป็นภาษา", True),
        ("ไทยภาษา", "ภาษาไทยเป็นภาษา", False),
        ("हिन्दी", "हनद", False),
        ("हनद", "हिन्दी", False),
        ("ガガーリン", "カカーリン", False),
        ("ｶﾞｶﾞｰﾘﾝ", "ガガーリンは", True),
        ("한국어", "한국어를 배운다", True),
        ("하", "한국어", False),
        ("東京", "京東", False),
        ("東京都", "東京 京都", False),
        ("😀", "so 😀!", True),
        ("👩‍💻", "👩‍💻👍🏽", True),
        ("👍", "👍🏽", True),
        ("👍🏽", "👍", False),
        ("❤", "❤️", True),
        ("й", "и", False),
        ("еж", "ёж", True),
        ("net", "network", False),
    ],
)
def test_what_a_query_finds(query: str, text: str, is_found: bool) -> None:
    assert matches(parse_search(query), text) is is_found


def test_queries_ask_for_every_term() -> None:
    assert fts5_query(("a", "b")) == '"a" "b"'
    assert tsquery(("a", "b")) == "'a' & 'b'"
    assert parse_search("東京 a") == Query(("a", "東京"), ())
    assert parse_search("東京都") == Query(("東京", "京都"), ("東京都",))


def test_long_words_queries_and_texts_are_bounded() -> None:
    assert parts("a" * 1000).words == ("a" * MAX_WORD_CHARACTERS,)
    assert len(parse_search(" ".join(f"w{n}" for n in range(100))).terms) == MAX_QUERY_TERMS
    long = "".join(chr(0x4E00 + n * 7 % 20_000) + chr(0x20000 + n) for n in range(40_000))
    assert len(search_columns(long)["search_text"].encode()) <= MAX_TERMS_BYTES


def test_the_terms_of_prompt_and_text_are_kept_once_each_in_order() -> None:
    assert search_columns("b a", "c a") == {"search_text": "b a c", "search_runs": ""}
    assert search_columns("日本 日本 a") == {
        "search_text": "a 日 本 日本", "search_runs": "日本",
    }  # fmt: skip
