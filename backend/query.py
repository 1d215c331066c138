"""Parses query strings, for all addresses.

A parameter is a name with a reader, which converts its text or rejects it. The errors of a request
are collected, each with the name of its parameter. Numbers are plain ASCII decimals of bounded
length: signs, blanks, underscores, digits of other scripts, ``nan`` and ``1e400``, which Python's
``int`` and ``float`` accept, are rejected. Knows nothing of the meaning of the parameters.
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
"""Takes the name and the text of a parameter; returns its value or raises ``ValidationFailed``."""


def parse_query(
    given: Mapping[str, str] | MultiDict[str, str],
    readers: Mapping[str, Reader],
    *,
    may_be_empty: Collection[str] = (),
    ignores_others: bool = False,
) -> dict[str, Any]:
    """Return the values of the parameters that are given, by name.

    Args:
        given: the query string, as Flask's ``request.args`` or as a plain mapping.
        readers: the parameters that exist.
        may_be_empty: parameters whose empty value means that they are absent, as forms send them.
        ignores_others: whether unknown parameters are ignored instead of rejected.

    Raises:
        ValidationFailed: it names every parameter with a bad value, given more than once, or
            unknown.
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
    """Return a text unchanged if the database can store it.

    Raises:
        ValidationFailed: the text contains NUL or a lone surrogate.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise refusal(name, "must be valid Unicode text without NUL")
    return text


def refusal(name: str, message: str) -> ValidationFailed:
    """Return the error of one parameter."""
    return ValidationFailed([FieldError(name, message)])


def text_of(max_characters: int) -> Reader:
    """Return a reader of texts of bounded length."""

    def read(name: str, text: str) -> str:
        if len(text) > max_characters:
            raise refusal(name, f"must have at most {max_characters} characters")
        return text

    return read


def whole(minimum: int, maximum: int, remark: str = "") -> Reader:
    """Return a reader of whole numbers within bounds, of at most nine digits."""

    def read(name: str, text: str) -> int:
        if not _WHOLE.fullmatch(text) or not minimum <= int(text) <= maximum:
            raise refusal(name, f"must be a whole number from {minimum} to {maximum}{remark}")
        return int(text)

    return read


def decimal(minimum: float, maximum: float, unit: str) -> Reader:
    """Return a reader of decimal numbers within bounds."""

    def read(name: str, text: str) -> float:
        if not _DECIMAL.fullmatch(text) or not minimum <= float(text) <= maximum:
            raise refusal(name, f"must be a number of {unit} from {minimum:g} to {maximum:g}")
        return float(text)

    return read


def truth() -> Reader:
    """Return a reader of ``true`` and ``false``."""

    def read(name: str, text: str) -> bool:
        if text not in ("true", "false"):
            raise refusal(name, "must be true or false")
        return text == "true"

    return read


def one_of(choices: Iterable[str]) -> Reader:
    """Return a reader of one of several values."""
    known = tuple(choices)

    def read(name: str, text: str) -> str:
        if text not in known:
            raise refusal(name, f"must be one of {', '.join(known)}")
        return text

    return read
