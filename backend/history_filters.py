"""Parses the filters of the history from a query string, for the API, the export and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from werkzeug.datastructures import MultiDict

from textmill.backend.query import Reader, one_of, parse_query, text_of, truth, whole
from textmill.core.instants import parse_instant
from textmill.core.jobs.history import DEFAULT_LIMIT, MAX_LIMIT, Filters, decode_cursor
from textmill.core.statuses import Status
from textmill.core.strategies import STRATEGIES_BY_NAME

Given = Mapping[str, str] | MultiDict[str, str]
_COMMON: dict[str, Reader] = {
    "q": text_of(1_000),
    "status": one_of(get_args(Status)),
    "strategy": one_of(STRATEGIES_BY_NAME),
    "model": text_of(255),
    "run_id": text_of(255),
    "starred": truth(),
    "since": lambda name, text: parse_instant(name, text, is_end=False),
    "until": lambda name, text: parse_instant(name, text, is_end=True),
}
_PAGES: dict[str, Reader] = {
    "limit": whole(1, MAX_LIMIT, f"; {DEFAULT_LIMIT} by default"),
    "cursor": lambda _, text: decode_cursor(text),
}
_FIELDS = {"q": "query", "cursor": "before_number"}  # fields of ``Filters`` with another name


def parse_filters(given: Given, *, ignores_others: bool = False) -> Filters:
    """Parse the filters of a page of the history; an empty value means no filter.

    Args:
        given: the query string.
        ignores_others: whether unknown parameters are ignored, as on a page.

    Raises:
        ValidationFailed: it names every bad parameter.
    """
    readers = _COMMON | _PAGES
    values = parse_query(given, readers, may_be_empty=readers.keys(), ignores_others=ignores_others)
    return _filters(values)


def parse_export(given: Given) -> tuple[str, Filters]:
    """Parse the format and the filters of an export, which has no pages.

    Raises:
        ValidationFailed: it names every bad parameter.
    """
    formats: dict[str, Reader] = {"format": one_of(("jsonl", "csv"))}
    values = parse_query(given, _COMMON | formats, may_be_empty=_COMMON.keys())
    return values.pop("format", "jsonl"), _filters(values)


def _filters(values: Mapping[str, Any]) -> Filters:
    return Filters(**{_FIELDS.get(name, name): value for name, value in values.items()})
