"""Problem documents of RFC 9457 as text: one form for what Flask answers and what the server does.

Knows nothing of Flask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from textmill.core.errors import FieldError

CONTENT_TYPE = "application/problem+json"
_TITLES = {
    400: "The request cannot be read",
    403: "Refused",
    404: "Not found",
    405: "Method not allowed",
    408: "The request took too long",
    409: "Conflict",
    413: "Request too large",
    414: "Address too long",
    415: "Unsupported media type",
    422: "The request has fields that cannot be used",
    429: "Too many jobs waiting",
    431: "Headers too large",
    500: "Something went wrong here",
    501: "Not implemented",
    503: "Not available right now",
}


def title_of(status: int) -> str:
    """The title of a status, the same in every document and page."""
    return _TITLES.get(status, "Error")


def problem_text(
    status: int,
    code: str,
    detail: str,
    errors: Sequence[FieldError] | None = None,
) -> str:
    """A problem document in ASCII."""
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
