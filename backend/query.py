"""Query strings: the one parser of every parameter that a client may put behind the question mark.

A parameter is a name with a reader, which turns its text into a value or refuses it. All refusals
of a request are collected and name their parameters. Numbers are plain ASCII decimals of bounded
length: what Python's own ``int`` and ``float`` also take (signs, blanks, underscores, digits of
other scripts, ``nan``, ``1e400``) is refused. Knows nothing of what the parameters mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from werkzeug.datastructures import MultiDict

from textmill.core.errors import FieldError, ValidationFailed

_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,9})?", re.ASCII)

Reader = Callable[[str, str], Any]
"""Takes a parameter's name and its text; returns the value or raises ``ValidationFailed``."""


def parse_query(
    given: Mapping[str, str] | MultiDict[str, str],
    readers: Mapping[str, Reader],
    *,
    may_be_empty: Collection[str] = (),
    ignores_others: bool = False,
) -> dict[str, Any]:
    """The values of a query string, by name; a parameter that is absent is left out.

    Args:
        given: the query string, as Flask's ``request.args`` or as a plain mapping.
        readers: the parameters that there are.
        may_be_empty: those that an empty value leaves out, as a form sends them.
        ignores_others: whether a parameter that does not exist is passed over instead of refused.

    Raises:
        ValidationFailed: names every parameter that is refused: a bad value, a name that came
            more than once, or one that does not exist.
    """
    errors: list[FieldError] = []
    values: dict[str, Any] = {}
    for name in given:
        reader = readers.get(name)
        if reader is None:
            if not ignores_others:
                errors.append(FieldError(name, "there is no such parameter"))
            continue
        try:
            text = _only_value(name, given)
            if text.strip() or name not in may_be_empty:
                values[name] = reader(name, checked_text(name, text))
        except ValidationFailed as failed:
            errors += failed.errors
    if errors:
        raise ValidationFailed(errors)
    return values


def _only_value(name: str, given: Mapping[str, str] | MultiDict[str, str]) -> str:
    texts = given.getlist(name) if isinstance(given, MultiDict) else [given[name]]
    if len(texts) > 1:
        raise refusal(name, "must be given once")
    return texts[0]


def checked_text(name: str, text: str) -> str:
    """A text that the database can take.

    Raises:
        ValidationFailed: it is not.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise refusal(name, "must be valid text, with no NUL in it")
    return text


def refusal(name: str, message: str) -> ValidationFailed:
    """What to raise about one parameter."""
    return ValidationFailed([FieldError(name, message)])


def text_of(max_characters: int) -> Reader:
    """Any text that is not too long."""

    def read(name: str, text: str) -> str:
        if len(text) > max_characters:
            raise refusal(name, f"must have at most {max_characters} characters")
        return text

    return read


def whole(minimum: int, maximum: int, remark: str = "") -> Reader:
    """A whole number within bounds of at most nine digits."""

    def read(name: str, text: str) -> int:
        if not _WHOLE.fullmatch(text) or not minimum <= int(text) <= maximum:
            raise refusal(name, f"must be a whole number from {minimum} to {maximum}{remark}")
        return int(text)

    return read


def decimal(minimum: float, maximum: float, unit: str) -> Reader:
    """A number within bounds, with or without a fraction."""

    def read(name: str, text: str) -> float:
        if not _DECIMAL.fullmatch(text) or not minimum <= float(text) <= maximum:
            raise refusal(name, f"must be a number of {unit} from {minimum:g} to {maximum:g}")
        return float(text)

    return read


def one_of(choices: Iterable[str]) -> Reader:
    """One of some words."""
    known = tuple(choices)

    def read(name: str, text: str) -> str:
        if text not in known:
            raise refusal(name, f"must be one of {', '.join(known)}")
        return text

    return read
