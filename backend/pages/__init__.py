"""The HTML pages, one module for each. Every page works without JavaScript."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, request

from textmill.backend.current import access, principal
from textmill.backend.owner import remember_owner
from textmill.backend.pages import (
    admin,
    docs,
    generate,
    history,
    job,
    models,
    queue,
    run,
    shared,
    sign_in,
)
from textmill.backend.pages.formats import fixed
from textmill.backend.pages.phrases import Phrase
from textmill.backend.pages.responses import render_error, render_unavailable, see_other
from textmill.core.errors import Unauthorized, Unavailable

pages = Blueprint("pages", __name__)
for _module in (generate, job, run, history, models, queue, docs, sign_in, shared, admin):
    pages.register_blueprint(_module.blueprint)
pages.add_app_template_filter(fixed)
pages.add_app_template_global(Phrase, "Phrase")
pages.register_error_handler(Unavailable, render_unavailable)


@pages.after_request
def _finish(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    return response if access().is_open else remember_owner(request, response)


@pages.app_context_processor
def _who_asks() -> dict[str, Any]:
    return {"principal": principal(), "access_mode": access().mode}


@pages.errorhandler(Unauthorized)
def _ask_to_sign_in(error: Unauthorized) -> Response:
    """Show the form to sign in, and come back to the page afterwards."""
    if request.method != "GET":
        return render_error(401, "Sign in first", str(error), None)
    path = request.full_path.rstrip("?")
    return see_other(f"/sign-in?next={quote(path, safe='')}")
