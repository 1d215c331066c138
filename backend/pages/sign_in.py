"""Signing in with an API key, and forgetting a visitor."""

from __future__ import annotations

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.current import access, principal, services
from textmill.backend.pages.responses import see_other
from textmill.core.errors import Conflict, Unauthorized

blueprint = Blueprint("sign_in", __name__)


@blueprint.get("/sign-in")
def sign_in_page() -> Response:
    """Show the form."""
    return _form("", 200)


@blueprint.post("/sign-in")
def sign_in() -> Response:
    """Sign this browser in with an API key."""
    if not access().is_open:
        return see_other("/sign-in")
    try:
        key = access().keys.authenticate(request.form.get("key", "").strip())
    except Unauthorized as error:
        return _form(str(error), 401)
    response = see_other(_next())
    access().sessions.begin(request, response, key.id)
    return response


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """Sign this browser out."""
    response = see_other("/")
    access().sessions.end(response)
    return response


@blueprint.post("/forget-me")
def forget_me() -> Response:
    """Delete everything of this visitor; jobs that run are canceled."""
    if principal().kind != "visitor":
        raise Conflict("Only visitors can be forgotten; delete texts in the history.")
    num_deleted = services().jobs.delete_all()
    page = render_template("forgotten.html", num_deleted=num_deleted)
    response = make_response(page)
    access().visitors.forget(response)
    return response


@blueprint.get("/robots.txt")
def robots() -> Response:
    """Keep search engines away from everything that visitors wrote."""
    return Response("User-agent: *\nDisallow: /\n", content_type="text/plain; charset=utf-8")


def _form(problem: str, status: int) -> Response:
    page = render_template("sign_in.html", problem=problem, next=_next())
    return make_response(page, status)


def _next() -> str:
    """The page to return to: a path of this site, so that a link cannot lead elsewhere."""
    path = request.values.get("next", "/")
    is_ours = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if is_ours and path.isprintable() else "/"
