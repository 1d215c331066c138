"""The types of the settings' values, which read and check the text of environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from textmill.core.errors import SettingsError
from textmill.core.paths import expand_home


class UnusableValueError(ValueError):
    """A value is invalid for a reason that is to be part of the message."""


def _int(value: object) -> object:
    """Read text as Python does: Pydantic would accept ``8000.0`` too."""
    return int(value) if isinstance(value, str) else value


def _float(value: object) -> object:
    return float(value) if isinstance(value, str) else value


def _host(text: str) -> str:
    if not text or any(character.isspace() or character in "/@" for character in text):
        raise ValueError
    return text


def _path(value: str | Path) -> Path:
    if not value or "\0" in str(value):
        raise ValueError
    try:
        return expand_home(value).absolute()
    except SettingsError as error:
        raise UnusableValueError(str(error)) from error


def _database_url(text: str) -> str:
    if text.startswith(("postgresql://", "postgres://")):
        text = "postgresql+psycopg://" + text.split("://", 1)[1]
    if text.startswith("sqlite:///") and len(text) > len("sqlite:///"):
        return text
    if text.startswith("postgresql+psycopg://"):
        return text
    raise ValueError


def _redis_url(text: str | None) -> str | None:
    if text is None:
        return None
    parts = urlsplit(text)
    if parts.scheme not in {"redis", "rediss", "unix"} or not (parts.netloc or parts.path):
        raise ValueError
    return text


def _kernels(text: str) -> str:
    return text if text in ("auto", "off") else str(_path(text))


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise ValueError
    return names


Whole = Annotated[int, BeforeValidator(_int)]
Seconds = Annotated[float, BeforeValidator(_float)]
AbsolutePath = Annotated[Path, BeforeValidator(_path)]
Host = Annotated[str, BeforeValidator(_host)]
DatabaseUrl = Annotated[str, BeforeValidator(_database_url)]
RedisUrl = Annotated[str | None, BeforeValidator(_redis_url)]
Kernels = Annotated[str, BeforeValidator(_kernels)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
