"""Templates: text with ``{fields}`` that makes a prompt and a completion of a record.

``Title: {title}`` puts the field ``title`` there; ``{{`` and ``}}`` are braces that are meant.
There is nothing else: no attributes, indexes or formats. The text is taken verbatim and no space
is added, so a completion usually begins with a space or a newline: the tokens of words begin with
one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from textmill.finetune.errors import ConfigError
from textmill.finetune.examples import Part
from textmill.finetune.records import Record

_PIECE = re.compile(r"\{\{|\}\}|\{(?P<name>[^{}]*)\}|[{}]|[^{}]+")
# Whatever a column may be called, less what str.format would read as more than a name.
_NAME = re.compile(r"[^\s.\[\]!:]([^\r\n\t.\[\]!:]*[^\s.\[\]!:])?")


@dataclass(frozen=True, slots=True)
class Field:
    """The place of a record's field within a template."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """How a record becomes the parts of an example.

    Attributes:
        prompt: pieces of the prompt, which is not learned; empty for none.
        completion: pieces of the completion, which is.
    """

    prompt: tuple[str | Field, ...]
    completion: tuple[str | Field, ...]

    @classmethod
    def parse(cls, prompt: str | None, completion: str) -> Template:
        """Read a template; no prompt, or an empty one, makes the whole text learned.

        Raises:
            ConfigError: a brace or a name in it is wrong.
        """
        parsed = _pieces(completion, "data.completion")
        if not any(isinstance(piece, Field) for piece in parsed):
            raise ConfigError(
                "data.completion names no {field}, so that every example would teach the same"
                " text. Name one, such as {text}."
            )
        return cls(_pieces(prompt or "", "data.prompt"), parsed)

    def has_field(self, name: str) -> bool:
        """Whether prompt or completion show the field ``name``."""
        return Field(name) in (*self.prompt, *self.completion)

    def parts(self, record: Record) -> tuple[Part, ...]:
        """The record's prompt, if there is one, and its completion.

        Raises:
            DataError: the record lacks a field, or has no text there.
        """
        prompt = _filled(self.prompt, record)
        completion = Part(_filled(self.completion, record), is_learned=True)
        if not completion.text.strip():  # its fields are computed ones
            raise record.error("the completion is blank, so that there is nothing to learn.")
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
            wrong = "is not closed" if piece == "{" else "closes nothing"
            raise ConfigError(
                f"{option}: the brace {piece} at character {found.start() + 1} {wrong}."
                f" Write {piece * 2} for a brace that is meant."
            )
        else:
            pieces.append({"{{": "{", "}}": "}"}.get(piece, piece))
    return tuple(pieces)


def _field(name: str, option: str) -> Field:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{option}: {{{name}}} is no field. Between braces stands the plain name of one, such"
            " as {title}, without spaces around it and without . [ ] ! : in it. Write {{ and }}"
            " for braces that are meant."
        )
    return Field(name)
