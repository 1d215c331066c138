"""Reads the numbers of a ``config.json`` that a stranger may have written.

A value that is missing is a ``KeyError``, since another reader may know its default; one that
cannot be is ``ModelUnusable``, with its name. Knows nothing of families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textmill.engine.models.errors import ModelUnusable

# Far beyond any model that fits a machine; what is larger is a mistake, and would ask for memory
# and time before anybody notices.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1 << 12


class ConfigReader:
    """One config, or an object inside it."""

    def __init__(self, document: Mapping[str, Any], where: str = "") -> None:
        """``where`` goes before a field's name in messages."""
        self._document = document
        self._where = where

    def size(self, name: str, *, default: int | None = None, maximum: int = MAX_SIZE) -> int:
        """A count of something, at least 1.

        Args:
            name: of the field.
            default: for a field that is missing or null; ``None`` makes it a must.
            maximum: the largest that can be.

        Raises:
            KeyError: it is missing and has no default.
            ModelUnusable: it is no such number.
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
        """A finite number within bounds, both included.

        Raises:
            KeyError: it is missing and has no default.
            ModelUnusable: it is no such number.
        """
        value = self._value(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not minimum <= value <= maximum:  # NaN is not, either
            raise self.wrong(name, f"a number from {minimum:g} to {maximum:g}")
        return float(value)

    def wrong(self, name: str, wanted: str) -> ModelUnusable:
        """The error that names a field, what it has and what it must be."""
        shown = repr(self._document.get(name))
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        return ModelUnusable(f"config.json has {self._where}{name} = {shown}; it must be {wanted}.")

    def _value(self, name: str, default: float | None) -> Any:
        value = self._document.get(name)
        if value is not None:
            return value
        if default is None:
            raise KeyError(name)
        return default
