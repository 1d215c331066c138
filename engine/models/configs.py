"""Reads the numbers of a ``config.json`` from an untrusted source.

A missing value is a ``KeyError``, because transformers may know a default; an invalid one is
``ModelUnusable``, with its name. Knows nothing of families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textmill.engine.models.errors import ModelUnusable

# Far beyond any model that fits a machine. A larger number is a mistake, which would otherwise show
# only after much memory and time.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1 << 12


class ConfigReader:
    """A config, or an object inside it."""

    def __init__(self, document: Mapping[str, Any], where: str = "") -> None:
        """Create a reader; messages put ``where`` before a field's name."""
        self._document = document
        self._where = where

    def size(self, name: str, *, default: int | None = None, maximum: int = MAX_SIZE) -> int:
        """Read a count, at least 1.

        Args:
            name: the field.
            default: for a field that is missing or null; ``None`` if the field is required.
            maximum: the largest valid number.

        Raises:
            KeyError: the field is missing and has no default.
            ModelUnusable: the value is invalid.
        """
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not 1 <= value <= maximum:
            raise self.wrong(name, f"a whole number from 1 to {maximum:,}")
        return int(value)

    def number(
        self, name: str, *, minimum: float, maximum: float, default: float | None = None
    ) -> float:
        """Read a finite number from ``minimum`` to ``maximum``, both included.

        Raises:
            KeyError: the field is missing and has no default.
            ModelUnusable: the value is invalid.
        """
        value = self._value(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not minimum <= value <= maximum:  # false for NaN
            raise self.wrong(name, f"a number from {minimum:g} to {maximum:g}")
        return float(value)

    def wrong(self, name: str, expected: str) -> ModelUnusable:
        """Make an error with the field's name, its value and the expected value."""
        shown = repr(self._document.get(name))
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        return ModelUnusable(
            f"config.json has {self._where}{name} = {shown}; it must be {expected}."
        )

    def _value(self, name: str, default: float | None) -> Any:
        value = self._document.get(name)
        if value is not None:
            return value
        if default is None:
            raise KeyError(name)
        return default
