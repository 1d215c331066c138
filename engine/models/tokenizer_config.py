"""What a model's tokenizer_config.json says beside its tokenizer: chat template, special tokens.

The web side renders conversations with it. The template is untrusted text; nothing is run here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from textmill.engine.models.provenance import bounded_content

MAX_BYTES = 512 * 1024  # of tokenizer_config.json, which may list thousands of added tokens
MAX_TEMPLATE_BYTES = 128 * 1024
MAX_TOKEN_CHARACTERS = 200
TEMPLATE_FILE = "chat_template.jinja"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer_config(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The chat template and the special tokens of a model's folder, as far as there are any.

    Args:
        folder: of the model.
        say: is called with a sentence about a file that is too large.
    """
    content = bounded_content(folder / "tokenizer_config.json", MAX_BYTES, say)
    try:
        document = json.loads(content or b"{}")
    except ValueError:
        document = {}
    document = document if isinstance(document, Mapping) else {}
    found: dict[str, Any] = {}
    for role in _ROLES:
        token = _content(document.get(role))
        if token:
            found[role] = token
    own = bounded_content(folder / TEMPLATE_FILE, MAX_TEMPLATE_BYTES, say)
    template = own.decode("utf-8", "replace") if own else _template(document.get("chat_template"))
    if template and len(template.encode()) <= MAX_TEMPLATE_BYTES:
        found["chat_template"] = template.replace("\0", "")
    return found


def _content(token: object) -> str:
    """The text of a token, which may be an object with more properties."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token.replace("\0", "")[:MAX_TOKEN_CHARACTERS] if isinstance(token, str) else ""


def _template(value: object) -> str | None:
    """The template; of several with names, the default one."""
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, Mapping)]
        value = next((i.get("template") for i in named if i.get("name") == "default"), None)
    return value if isinstance(value, str) else None
