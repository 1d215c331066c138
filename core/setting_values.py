"""The types of the settings' values, which read and check the text of environment variables."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from textmill.core.errors import SettingsError
from textmill.core.paths import expand_home

MIN_SECRET_CHARACTERS = 32
ORIGINS = "origins such as https://example.org, separated by commas"
# A name, an IPv4 address, or an IPv6 address in brackets; without a port.
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, section 3.3
_ORIGIN = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


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


def _host_names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name.lower().rstrip(".") for name in _names(value))
    if not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError
    return names


def _origins(value: str | tuple[str, ...]) -> tuple[str, ...]:
    origins = tuple(origin.lower().rstrip("/") for origin in _names(value))
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError
    return origins


def _oidc_issuer(text: str | None) -> str | None:
    """The issuer as it is given: OpenID Connect compares it character by character."""
    if not text:
        return None
    parts = urlsplit(text)
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and text.isprintable()
    if not is_plain or " " in text or "?" in text or "#" in text or len(text) > 255:
        raise ValueError
    _ = parts.port  # raises for one that is not a number
    if not parts.hostname or not can_carry_secrets(text):
        raise ValueError
    return text


def _oidc_scopes(text: str) -> str:
    scopes = text.split()
    if "openid" not in scopes or not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise ValueError
    return " ".join(scopes)


def _people(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """Emails, @domains, groups and subjects; an unset variable of a Compose file is empty."""
    people = _names(value) if value else ()
    if "@" in people:
        raise ValueError
    return people


def _optional(text: str | None) -> str | None:
    if text and not text.isprintable():
        raise ValueError
    return text or None


def can_carry_secrets(url: str) -> bool:
    """Whether nobody on the network can read or change what is sent to an address."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def _secret(text: str | None) -> str | None:
    if text and len(text) < MIN_SECRET_CHARACTERS:
        raise ValueError
    return text or None  # a Compose file passes on an unset variable as an empty one


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which others cannot reach."""
    name = host.lower().rstrip(".").removeprefix("[").removesuffix("]")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


Whole = Annotated[int, BeforeValidator(_int)]
Seconds = Annotated[float, BeforeValidator(_float)]
OptionalSeconds = Annotated[float | None, BeforeValidator(_float)]
AbsolutePath = Annotated[Path, BeforeValidator(_path)]
Host = Annotated[str, BeforeValidator(_host)]
DatabaseUrl = Annotated[str, BeforeValidator(_database_url)]
RedisUrl = Annotated[str | None, BeforeValidator(_redis_url)]
Kernels = Annotated[str, BeforeValidator(_kernels)]
OidcIssuer = Annotated[str | None, BeforeValidator(_oidc_issuer)]
OidcScopes = Annotated[str, BeforeValidator(_oidc_scopes)]
OptionalText = Annotated[str | None, BeforeValidator(_optional)]
People = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_people)]
HostNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_host_names)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]
Secret = Annotated[str | None, BeforeValidator(_secret)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
