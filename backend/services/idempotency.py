"""Idempotency keys: their format, and the hash by which two request bodies are compared."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from textmill.core.errors import FieldError, ValidationFailed

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


def checked_key(key: str | None) -> str | None:
    """Return the key of a request unchanged.

    Raises:
        ValidationFailed: the key is empty, too long or not printable ASCII.
    """
    if key is not None and not _KEY.fullmatch(key):
        message = "must be 1 to 255 printable ASCII characters"
        raise ValidationFailed([FieldError("Idempotency-Key", message)])
    return key


def body_hash(payload: object, key: str | None) -> str | None:
    """Return a hash that equivalent bodies share; ``None`` for a request without a key."""
    if key is None:
        return None
    canonical = json.dumps(_canonical(payload), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Return a JSON value in a form in which equivalent requests are equal.

    JSON has one kind of number, so 2.0 equals 2. A null field equals an omitted one. An explicit
    default differs from an omitted one, because the default may change between the two requests.
    """
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
