"""What training is made of: examples, each a text in parts of which some are learned.

Knows nothing of files or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example was read: the file's path and the line, counted from 1."""

    path: str
    line: int


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text; the loss counts it where ``is_learned``."""

    text: str
    is_learned: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One text to learn from.

    Attributes:
        parts: in order. Plain text is one learned part; a prompt and its completion are two; a
            chat has one a message, the assistant's are learned.
        place: where it was read.
    """

    parts: tuple[Part, ...]
    place: Place

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(part.text for part in self.parts)

    @property
    def prompt(self) -> str:
        """What stands before the last learned part; empty for plain text."""
        return "".join(part.text for part in self.parts[:-1])

    @property
    def completion(self) -> str:
        """The last part, which is learned."""
        return self.parts[-1].text
