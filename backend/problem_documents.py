"""Formats problem documents of RFC 9457, for the application and for the server.

Knows nothing of Flask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from textmill.core.errors import FieldError

CONTENT_TYPE = "application/problem+json"
_TITLES = {
    400: "Bad request",
    401: "Sign in first",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Request too large",
    414: "Address too long",
    415: "Unsupported media type",
    421: "Not a name of this service",
    422: "Some fields are invalid",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    501: "Not implemented",
    503: "Temporarily unavailable",
}


def title_of(status: int) -> str:
    """Return the title of a status, for documents and pages."""
    return _TITLES.get(status, "Error")


def problem_text(
    status: int,
    code: str,
    detail: str,
    errors: Sequence[FieldError] | None = None,
) -> str:
    """Return a problem document as JSON in ASCII."""
    body: dict[str, Any] = {
        "type": f"urn:textmill:problem:{code}",
        "title": title_of(status),
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors is not None:
        body["errors"] = [{"field": error.field, "message": error.message} for error in errors]
    return json.dumps(body, ensure_ascii=True)
