"""The HTTP API, one module a resource; all of it speaks JSON and problem documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flask import Request, Response, current_app

from backend.services import Services
from core.errors import FieldError, ValidationFailed


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


def query_filters(request: Request) -> dict[str, str]:
    """The query string as a mapping.

    Raises:
        ValidationFailed: a name came twice.
    """
    lists = request.args.to_dict(flat=False)
    twice = [name for name, values in lists.items() if len(values) > 1]
    if twice:
        raise ValidationFailed([FieldError(name, "must be given once") for name in twice])
    return {name: values[0] for name, values in lists.items()}
