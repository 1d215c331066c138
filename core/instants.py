"""Dates and date-times as clients write them, read as milliseconds since 1970.

The forms are those of ISO 8601 that ``datetime.fromisoformat`` reads, in the basic and the
extended format: a calendar date or a week date, with or without a time of day, a fraction and an
offset. The default offset is UTC.
"""

from __future__ import annotations

import datetime as dt
import re

from textmill.core.errors import FieldError, ValidationFailed

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_DAY_MS = 86_400_000
_FORM = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d|\d{8}|\d{4}-W\d\d(?:-\d)?|\d{4}W\d{2,3})"
    r"(?:[T ](?P<time>\d\d(?::?\d\d(?::?\d\d(?:[.,]\d{1,9})?)?)?)"
    # In a query string "+" means a blank: an offset written without percent-encoding arrives so.
    r"(?P<offset>Z|[-+ ]\d\d(?::?\d\d)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_WEEK = re.compile(r"\d{4}-?W\d\d", re.ASCII | re.IGNORECASE)


def parse_instant(name: str, value: str, *, is_end: bool) -> int:
    """A date or date-time as milliseconds since 1970.

    Args:
        name: the field that an error names.
        value: the text.
        is_end: whether a day or a week stands for its last millisecond instead of its first.

    Raises:
        ValidationFailed: it is neither.
    """
    form = _FORM.fullmatch(value.strip())
    try:
        if form is None:
            raise ValueError
        # Python reads neither a lower-case "z" nor "w".
        date, time, offset = ((part or "").upper() for part in form.groups())
        if not time:
            start = _milliseconds(dt.datetime.fromisoformat(date))
            days = 7 if _WEEK.fullmatch(date) else 1
            return start + days * _DAY_MS - 1 if is_end else start
        written = f"{date}T{time}{offset.replace(' ', '+')}"
        return _milliseconds(dt.datetime.fromisoformat(written))
    except (ValueError, OverflowError):
        message = "must be a date or a date-time, such as 2026-11-23 or 2026-11-23T12:00:00Z"
        raise ValidationFailed([FieldError(name, message)]) from None


def _milliseconds(moment: dt.datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (aware - _EPOCH) // dt.timedelta(milliseconds=1)
