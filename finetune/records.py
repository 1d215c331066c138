"""Records: one row of the data each, with the place where it stands.

Knows nothing of files (``finetune.files``, ``finetune.hub``) nor of what the fields mean
(``finetune.formats``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from textmill.finetune.errors import DataError
from textmill.finetune.examples import Place

_TYPE_WORDS: dict[type, str] = {
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
    """One row.

    Attributes:
        place: where it was read.
        fields: by name, as the file has them.
        unit: what ``place.line`` counts: a line of a file, an item of a list, a row of the Hub.
        computed: texts made from the fields; they come before these, and may be blank.
    """

    place: Place
    fields: Mapping[str, object]
    unit: str = "line"
    computed: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A field's text.

        Raises:
            DataError: the field is missing, is no text, or is blank.
        """
        if name in self.computed:
            return self.computed[name]
        if name not in self.fields:
            raise self.error(f"is missing; the {self.unit} has {listed(self.fields)}.", name)
        text = self.as_text(self.fields[name], name)
        if not text.strip():
            raise self.error(f"is blank; fill it, or take the {self.unit} out.", name)
        return text

    def as_text(self, value: object, name: str) -> str:
        """``value``, found at ``name``, if it is text that can be encoded.

        Raises:
            DataError: it is not.
        """
        if not isinstance(value, str):
            raise self.error(f"must be text, but is {type_word(value)}.", name)
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error("holds half of a surrogate pair; write the whole character.", name)
        return value

    def error(self, message: str, name: str | None = None) -> DataError:
        """An error that names this record's place, and the field ``name``."""
        return DataError(self.place.path, message, line=self.place.line, field=name, unit=self.unit)


def type_word(value: object) -> str:
    """What a value from JSON is, in words."""
    return _TYPE_WORDS.get(type(value), f"of the type {type(value).__name__}")


def listed(names: Mapping[str, object]) -> str:
    """Names for a message; at most ten, in the file's order."""
    shown = [name or "(no name)" for name in list(names)[:10]]
    return ", ".join(shown) + (", …" if len(names) > 10 else "") if shown else "no fields"
