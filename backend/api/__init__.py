"""The HTTP API, one module a resource; all of it speaks JSON and problem documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flask import Response, current_app

from textmill.backend.services.services import Services


def services() -> Services:
    """The application's services."""
    found: Services = current_app.extensions["textmill"]
    return found


def json_response(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A document as JSON."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, content_type="application/json")
