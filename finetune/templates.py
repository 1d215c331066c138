"""Templates: text with ``{field}`` names that turns a record into a prompt and a completion.

In ``Title: {title}`` the field ``title`` is inserted; ``{{`` and ``}}`` are literal braces.
Attributes, indexes and format specifications are not supported. The text is used verbatim and no
space is added, so a completion usually begins with a space or a newline, as the tokens of words do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from textmill.finetune.errors import ConfigError
from textmill.finetune.examples import Part
from textmill.finetune.records import Record

_PIECE = re.compile(r"\{\{|\}\}|\{(?P<name>[^{}]*)\}|[{}]|[^{}]+")
# Any name that a column may have, except characters that str.format gives a meaning to.
_NAME = re.compile(r"[^\s.\[\]!:]([^\r\n\t.\[\]!:]*[^\s.\[\]!:])?")


@dataclass(frozen=True, slots=True)
class Field:
    """A reference to a field of the record."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """Turns a record into the parts of an example.

    Attributes:
        prompt: pieces of the prompt, which is not learned; empty if there is no prompt.
        completion: pieces of the completion, which is learned.
    """

    prompt: tuple[str | Field, ...]
    completion: tuple[str | Field, ...]

    @classmethod
    def parse(cls, prompt: str | None, completion: str) -> Template:
        """Parse a template; without a prompt, or with an empty one, the whole text is learned.

        Raises:
            ConfigError: a brace or a name is wrong.
        """
        parsed = _pieces(completion, "data.completion")
        if not any(isinstance(piece, Field) for piece in parsed):
            raise ConfigError(
                "data.completion contains no {field}, so every example would teach the same text."
                " Add one, such as {text}."
            )
        return cls(_pieces(prompt or "", "data.prompt"), parsed)

    def has_field(self, name: str) -> bool:
        """Whether the prompt or the completion contains the field ``name``."""
        return Field(name) in (*self.prompt, *self.completion)

    def parts(self, record: Record) -> tuple[Part, ...]:
        """The prompt, if there is one, and the completion of a record.

        Raises:
            DataError: a field of the record is missing or is not text.
        """
        prompt = _filled(self.prompt, record)
        completion = Part(_filled(self.completion, record), is_learned=True)
        if not completion.text.strip():  # possible, because computed fields may be blank
            raise record.error("the completion is blank, so there is nothing to learn.")
        return (Part(prompt, is_learned=False), completion) if prompt else (completion,)


def _filled(pieces: tuple[str | Field, ...], record: Record) -> str:
    return "".join(p if isinstance(p, str) else record.text(p.name) for p in pieces)


def _pieces(text: str, option: str) -> tuple[str | Field, ...]:
    pieces: list[str | Field] = []
    for found in _PIECE.finditer(text):
        piece, name = found[0], found["name"]
        if name is not None:
            pieces.append(_field(name, option))
        elif piece in ("{", "}"):
            fault = "is not closed" if piece == "{" else "has no opening brace"
            raise ConfigError(
                f"{option}: the brace {piece} at character {found.start() + 1} {fault}."
                f" Write {piece * 2} for a literal brace."
            )
        else:
            pieces.append({"{{": "{", "}}": "}"}.get(piece, piece))
    return tuple(pieces)


def _field(name: str, option: str) -> Field:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{option}: {{{name}}} is not a field. Write the name of a field between braces, such"
            " as {title}, without spaces around it and without . [ ] ! : in it. Write {{ and }}"
            " for literal braces."
        )
    return Field(name)
