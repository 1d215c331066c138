"""Dates and date-times of clients."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.core.errors import ValidationFailed
from textmill.core.instants import parse_instant

DAY_MS = 86_400_000
MIDNIGHT = int(datetime(2026, 11, 25, tzinfo=UTC).timestamp()) * 1000
NOON = MIDNIGHT + DAY_MS // 2


@pytest.mark.parametrize(
    "text", ["2026-11-25", "20261125", "2026-W48-3", "2026W483", "2026-w48-3", " 2026-11-25 "]
)
def test_a_day_in_any_form_is_the_whole_day(text: str) -> None:
    assert parse_instant("since", text, is_end=False) == MIDNIGHT
    assert parse_instant("until", text, is_end=True) == MIDNIGHT + DAY_MS - 1


@pytest.mark.parametrize("text", ["2026-W48", "2026W48"])
def test_a_week_is_the_whole_week(text: str) -> None:
    monday = MIDNIGHT - 2 * DAY_MS
    assert parse_instant("since", text, is_end=False) == monday
    assert parse_instant("until", text, is_end=True) == monday + 7 * DAY_MS - 1


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-25T12:00:00Z", "2026-11-25T12:00:00z", "2026-11-25t12:00:00z", "20261125T120000Z",
        "20261125T1200", "2026-11-25 12:00", "2026-11-25T12", "2026-11-25T12:00:00.000000Z",
        "2026-11-25T12:00:00,0", "2026-11-25T13:00:00+01:00", "2026-11-25T13:00:00 01:00",
        "2026-11-25T13:00:00 0100", "2026-11-25T13:00+01", "2026-11-25T02:00:00-10:00",
        "2026-W48-3T12:00Z", "2026-11-25T12:00:00.000999999Z",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_end", [False, True])
def test_a_date_time_in_any_form_is_that_instant(text: str, is_end: bool) -> None:
    assert parse_instant("since", text, is_end=is_end) == NOON


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "yesterday", "2026", "2026-11", "2026-13-01", "20261325", "2026-11-25x12:00",
        "2026-11-25T25:00", "2026-11-25T12:60", "2026-11-25T", "2026-W54", "2026-11-25T12:00:00ZZ",
        "0000-01-01", "２０２６-11-25", "2026-11-25Z", "1" * 400, "+2026-11-25",
        "2026-11-25T12:00+99:00", "2026-329", "1764072000",
    ],
)  # fmt: skip
def test_what_is_neither_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        parse_instant("until", text, is_end=True)
    assert [error.field for error in caught.value.errors] == ["until"]


@given(st.datetimes(timezones=st.timezones()), st.sampled_from(["T", " ", "t"]))
def test_what_python_writes_is_read_back(moment: datetime, separator: str) -> None:
    offset = moment.utcoffset()
    if offset is None or offset.total_seconds() % 60:
        return  # of the time before zones: ISO 8601 has no seconds in an offset
    text = moment.isoformat(separator)
    try:
        expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000
    except OverflowError:
        return
    assert abs(parse_instant("since", text, is_end=False) - expected) <= 1


def test_the_ends_of_the_calendar_are_days_too() -> None:
    assert parse_instant("until", "9999-12-31", is_end=True) > 0
    assert parse_instant("since", "0001-01-01", is_end=False) < 0
