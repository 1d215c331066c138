"""Errors in the form that OpenAI's clients read: an object with message, type, param and code.

Knows nothing of requests. A client retries 408, 409, 429 and 5xx, so that a final error is none of
these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flask import Response

from textmill.core.errors import FieldError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_FINAL = {409: 400, 422: 400}  # statuses that clients would retry, or do not know


def error_object(
    status: int, code: str, detail: str, errors: Sequence[FieldError] | None = None
) -> dict[str, Any]:
    """The object under ``error``; ``param`` is the first bad field."""
    first = errors[0] if errors else None
    message = " ".join(f"{error.field}: {error.message}." for error in errors or ()) or detail
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {
        "message": message,
        "type": kind,
        "param": first.field if first and first.field else None,
        "code": code,
    }


def openai_error(
    status: int, code: str, detail: str, errors: Sequence[FieldError] | None = None
) -> Response:
    """Return an error as a response."""
    document = {"error": error_object(status, code, detail, errors)}
    status = _FINAL.get(status, status)
    return Response(json.dumps(document), status, content_type="application/json")
