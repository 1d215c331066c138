"""Query strings: the parser returns only simple, bounded values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from textmill.backend.history_filters import parse_export, parse_filters
from textmill.backend.query import decimal, parse_query, whole
from textmill.core.errors import ValidationFailed
from textmill.core.jobs.history import MAX_LIMIT, Filters

NO_NUMBERS = [
    "0000000010000", "010", "١٠", "１０", "+5", "-1", "1_0", " 5", "5 ", "\t5", "\n5", "5\n", "1.0",
    "1e1", "0x5", "nan", "NaN", "inf", "-inf", "Infinity", "1e400", "9" * 19, "9" * 5_000,
    "½", "5\0", "", "null", "true", "[5]", "5,0",
]  # fmt: skip


def refused(given: object, readers: object, **options: bool) -> set[str]:
    with pytest.raises(ValidationFailed) as caught:
        parse_query(given, readers, **options)  # type: ignore[arg-type]
    assert all(error.message for error in caught.value.errors)
    return {error.field for error in caught.value.errors}


def unless_refused(name: str, text: str) -> Filters:
    """Return the filters, or ``None`` if the value is rejected by name."""
    try:
        return parse_filters({name: text})
    except ValidationFailed as failed:
        fields = [error.field for error in failed.errors]
    assert fields == [name]
    return Filters()


@pytest.mark.parametrize("text", [*NO_NUMBERS, "0", "201"])
def test_anything_but_a_plain_whole_number_in_bounds_is_rejected(text: str) -> None:
    assert refused({"limit": text}, {"limit": whole(1, 200)}) == {"limit"}


@pytest.mark.parametrize(
    "text", [text for text in NO_NUMBERS if text != "1.0"] + ["30.1", ".5", "5.", "1.5e0", "-0"]
)
def test_anything_but_a_plain_decimal_in_bounds_is_rejected(text: str) -> None:
    assert refused({"wait": text}, {"wait": decimal(0, 30, "seconds")}) == {"wait"}


def test_numbers_in_bounds_are_read() -> None:
    readers = {"n": whole(0, 10**9 - 1), "x": decimal(0, 30, "seconds")}
    assert parse_query({"n": "0", "x": "0"}, readers) == {"n": 0, "x": 0.0}
    assert parse_query({"n": "999999999", "x": "29.25"}, readers) == {"n": 999_999_999, "x": 29.25}


def test_duplicate_and_unknown_names_are_rejected_with_the_bad_values() -> None:
    given = MultiDict([("limit", "1"), ("limit", "2"), ("x", "1"), ("y", "x"), ("z", "3")])
    readers = {"limit": whole(1, 9), "y": whole(1, 9), "z": whole(1, 9)}
    assert refused(given, readers) == {"limit", "x", "y"}
    assert refused(given, readers, ignores_others=True) == {"limit", "y"}


@given(st.text(max_size=30))
def test_any_limit_is_within_bounds_or_rejected(text: str) -> None:
    filters = unless_refused("limit", text)
    assert filters.limit is None or 1 <= filters.limit <= MAX_LIMIT


@given(st.sampled_from(["cursor", "since", "until", "q", "model", "run_id"]), st.text(max_size=60))
def test_any_filter_can_be_stored_or_is_rejected(name: str, text: str) -> None:
    filters = unless_refused(name, text)
    for number in (filters.before_number, filters.since, filters.until):
        assert number is None or -(2**63) <= number < 2**63
    for words in (filters.query, filters.model, filters.run_id):
        assert words is None or ("\0" not in words and words.encode())


@pytest.mark.parametrize("name", ["q", "model", "run_id"])
def test_texts_are_bounded(name: str) -> None:
    with pytest.raises(ValidationFailed, match=name):
        parse_filters({name: "a" * 1_001})


def test_empty_filters_filter_nothing_and_an_export_has_no_pages() -> None:
    assert parse_filters({"q": "", "limit": " ", "cursor": "", "status": ""}) == Filters()
    assert parse_export({"q": "a"}) == ("jsonl", Filters(query="a"))
    for name in ("limit", "cursor"):
        with pytest.raises(ValidationFailed, match=name):
            parse_export({name: "1"})
