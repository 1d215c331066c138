"""Training examples: texts in parts, some of which are learned.

Knows nothing of files or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """Where an example was read: the file's path and the line, counted from 1."""

    path: str
    line: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text; the loss counts it if ``is_learned``."""

    text: str
    is_learned: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Attributes:
        parts: in order. Plain text is one learned part. A prompt and its completion are two. A chat
            has a prompt part and a learned part for each message of the assistant.
        location: where it was read.
    """

    parts: tuple[Part, ...]
    location: Location

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(part.text for part in self.parts)

    @property
    def prompt(self) -> str:
        """The text before the last learned part; empty for plain text."""
        return "".join(part.text for part in self.parts[:-1])

    @property
    def completion(self) -> str:
        """The last part, which is learned."""
        return self.parts[-1].text
