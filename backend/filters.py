"""The history's filters as a query string gives them, for the API, the export and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from core.errors import FieldError, ValidationFailed
from core.history import DEFAULT_LIMIT, MAX_LIMIT, Filters, decode_cursor, parse_instant
from core.strategies import STRATEGIES_BY_NAME
from core.views import Status

_FILTERS = ("limit", "cursor", "q", "status", "strategy", "model", "run_id", "since", "until")


def parse_filters(filters: Mapping[str, str]) -> Filters:
    """The history's filters from a query string; an empty value is no filter.

    Raises:
        ValidationFailed: names every bad one.
    """
    errors = [
        FieldError(name, "there is no such filter") for name in filters if name not in _FILTERS
    ]
    given = {name: value for name, value in filters.items() if value.strip() and name in _FILTERS}
    values: dict[str, Any] = {}
    for name, value in given.items():
        try:
            values |= _parse_filter(name, value)
        except ValidationFailed as failed:
            errors += failed.errors
    if errors:
        raise ValidationFailed(errors)
    return Filters(**values)


def _parse_filter(name: str, value: str) -> dict[str, Any]:
    def refuse(message: str) -> ValidationFailed:
        return ValidationFailed([FieldError(name, message)])

    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise refuse("must be valid text, with no NUL in it")
    if name == "limit":
        if not value.isascii() or not value.isdigit() or not 1 <= int(value[:9]) <= MAX_LIMIT:
            raise refuse(f"must be a whole number from 1 to {MAX_LIMIT}; {DEFAULT_LIMIT} if absent")
        return {"limit": int(value)}
    if name == "cursor":
        return {"before_number": decode_cursor(value)}
    if name in {"since", "until"}:
        return {name: parse_instant(name, value, is_end=name == "until")}
    allowed = {"status": get_args(Status), "strategy": tuple(STRATEGIES_BY_NAME)}.get(name)
    if allowed is not None and value not in allowed:
        raise refuse(f"must be one of {', '.join(allowed)}")
    return {"query" if name == "q" else name: value}
