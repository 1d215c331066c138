"""Makes text from models and servers safe to print on a terminal.

A terminal executes some characters: escape sequences change its title, its colours or its answers,
a carriage return overwrites a line, and direction marks change the order of the text. They are
printed as escapes instead.
"""

from __future__ import annotations

import json
import re
from typing import Any

_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings and overrides of direction
    "\u2028\u2029"  # line and paragraph separator
    "\ufff9-\ufffb\U000e0000-\U000e007f]"  # annotations and tags, which hide text
)


def printable(text: str) -> str:
    r"""The text with control characters written as escapes, like ``\x1b`` or ``\u202e``."""
    return _COMMANDS.sub(lambda match: _escape(ord(match[0])), text)


def printable_json(document: Any) -> str:
    """The document as indented JSON, with control characters as JSON escapes."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return _COMMANDS.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
