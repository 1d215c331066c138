"""Which addresses are those of an API, and in which form their errors are.

``/api/`` is the product's own, ``/v1/`` is OpenAI's, with three helpers at the root. All other
addresses are pages.
"""

from __future__ import annotations

OWN_PREFIX = "/api/"
OPENAI_PREFIX = "/v1/"
OPENAI_HELPERS = frozenset({"/tokenizer_info", "/tokenize", "/detokenize"})


def is_openai(path: str) -> bool:
    """Whether clients of OpenAI's API use a path."""
    return path.startswith(OPENAI_PREFIX) or path in OPENAI_HELPERS


def is_api(path: str) -> bool:
    """Whether programs use a path."""
    return path.startswith(OWN_PREFIX) or is_openai(path)
