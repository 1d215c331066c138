"""What all pages have in common: redirects, error pages, and titles of strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from flask import Response, make_response, redirect, render_template

from textmill.backend.strategy_views import strategy_views
from textmill.core.errors import FieldError, Unavailable

EXAMPLE_PROMPT = "Title: A Simple Method for Long-Range Attention\n\nAbstract: In this paper we"


def see_other(path: str) -> Response:
    """Redirect after a form: 303."""
    return make_response(redirect(path, 303))


def with_query(path: str, values: Mapping[str, Any]) -> str:
    """Return an address with a query string, if there are any values."""
    return f"{path}?{urlencode(values)}" if values else path


def strategy_titles() -> dict[str, str]:
    """Return the titles of all strategies, by name."""
    return {strategy["name"]: strategy["title"] for strategy in strategy_views()}


def render_error(
    status: int, title: str, detail: str, errors: Sequence[FieldError] | None
) -> Response:
    """Return an error as a page."""
    page = render_template(
        "error.html", status=status, title=title, detail=detail, errors=errors or []
    )
    return make_response(page, status)


def render_unavailable(error: Unavailable) -> Response:
    """Return a temporary error as a page that says when to try again."""
    page = render_template(
        "error.html",
        status=error.http_status,
        title="Temporarily unavailable",
        detail=str(error),
        errors=[],
        retry_after_seconds=error.retry_after_seconds,
    )
    response = make_response(page, error.http_status)
    response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
