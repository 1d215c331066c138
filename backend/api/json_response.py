"""JSON responses of the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flask import Response


def json_response(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a document as a JSON response."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, content_type="application/json")
