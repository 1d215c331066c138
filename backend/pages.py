"""The pages: generate, one job, errors. Server-rendered; everything works without JavaScript."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Blueprint, Response, make_response, render_template, request

from backend import page_lists
from backend.owner import remember_owner
from core.errors import FieldError

pages = Blueprint("pages", __name__)


def render_error(
    status: int, title: str, detail: str, errors: Sequence[FieldError] | None
) -> Response:
    """An error as a page."""
    page = render_template(
        "error.html", status=status, title=title, detail=detail, errors=errors or []
    )
    return make_response(page, status)


@pages.after_request
def _remember(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    return remember_owner(request, response)


page_lists.register(pages)
