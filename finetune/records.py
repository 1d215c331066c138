"""A record of the data, with its location.

Knows nothing of files (``finetune.files``, ``finetune.hub``) or of the meaning of the fields
(``finetune.formats``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from textmill.finetune.errors import DataError
from textmill.finetune.examples import Location

_TYPE_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class Record:
    """A record: named fields and where they were read.

    Attributes:
        location: where it was read.
        fields: name → value, as in the file.
        unit: what ``location.line`` counts: a line of a file, an item of a list, a row of the Hub.
        computed: texts derived from the fields. They take precedence over fields of the same name
            and may be blank.
    """

    location: Location
    fields: Mapping[str, object]
    unit: str = "line"
    computed: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """The text of a field.

        Raises:
            DataError: the field is missing, is not text, or is blank.
        """
        if name in self.computed:
            return self.computed[name]
        if name not in self.fields:
            raise self.error(f"is missing; the {self.unit} has {join_names(self.fields)}.", name)
        text = self.as_text(self.fields[name], name)
        if not text.strip():
            raise self.error(f"is blank; fill it, or remove the {self.unit}.", name)
        return text

    def as_text(self, value: object, name: str) -> str:
        """Check that the value of the field ``name`` is text that can be encoded as UTF-8.

        Raises:
            DataError: it is not.
        """
        if not isinstance(value, str):
            raise self.error(f"must be text, but is {describe_type(value)}.", name)
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error("contains half of a surrogate pair; write the whole character.", name)
        return value

    def error(self, message: str, name: str | None = None) -> DataError:
        """An error that names this record's location and the field ``name``."""
        return DataError(
            self.location.path, message, line=self.location.line, field=name, unit=self.unit
        )


def describe_type(value: object) -> str:
    """The type of a JSON value, for messages."""
    return _TYPE_NAMES.get(type(value), f"of the type {type(value).__name__}")


def join_names(names: Mapping[str, object]) -> str:
    """Up to ten names in the file's order, for messages."""
    shown = [name or "(no name)" for name in list(names)[:10]]
    return ", ".join(shown) + (", …" if len(names) > 10 else "") if shown else "no fields"
