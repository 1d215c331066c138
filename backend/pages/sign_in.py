"""Signing in with an API key or by single sign-on, and forgetting a visitor."""

from __future__ import annotations

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.access.sign_in_errors import SignInFailed
from textmill.backend.access.single_sign_on import CALLBACK_PATH, SingleSignOn
from textmill.backend.current import access, principal, services
from textmill.backend.pages.responses import see_other
from textmill.core.errors import Conflict, Forbidden, NotFound, Unauthorized

PROVIDER_RETRY_SECONDS = 30
blueprint = Blueprint("sign_in", __name__)


@blueprint.get("/sign-in")
def sign_in_page() -> Response:
    """Show the form."""
    return _form(200)


@blueprint.post("/sign-in")
def sign_in() -> Response:
    """Sign this browser in with an API key."""
    if not access().is_open:
        return see_other("/sign-in")
    try:
        key = access().keys.authenticate(request.form.get("key", "").strip())
    except Unauthorized as error:
        return _form(401, problem=str(error))
    response = see_other(_next())
    access().sessions.begin(request, response, key.id)
    return response


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """Sign this browser out."""
    response, who, sign_on = see_other("/"), principal(), access().sign_on
    if who.kind == "user" and sign_on is not None:
        sign_on.end_sessions(who)
    access().sessions.end(response)
    return response


@blueprint.get("/sign-in/sso")
def begin_single_sign_on() -> Response:
    """Lead this browser to the provider of the single sign-on."""
    try:
        return _sign_on().begin(request, _next())
    except SignInFailed as error:
        return _failed(error)


@blueprint.get(CALLBACK_PATH)
def finish_single_sign_on() -> Response:
    """Sign in the browser that the provider sends back."""
    sign_on = _sign_on()
    try:
        user, path = sign_on.finish(request)
    except (SignInFailed, Forbidden) as error:
        response = _failed(error)
    else:
        response = see_other(path)
        sign_on.remember(request, response, user)
    sign_on.forget_attempt(response)
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


def _sign_on() -> SingleSignOn:
    sign_on = access().sign_on
    if sign_on is None:
        raise NotFound("This service has no single sign-on; sign in with an API key at /sign-in.")
    return sign_on


def _failed(error: SignInFailed | Forbidden) -> Response:
    response = _form(error.http_status, failure=str(error))
    if error.http_status == 503:
        response.headers["Retry-After"] = str(PROVIDER_RETRY_SECONDS)
    return response


def _form(status: int, *, problem: str = "", failure: str = "") -> Response:
    page = render_template(
        "sign_in.html",
        problem=problem,
        failure=failure,
        next=_next(),
        has_single_sign_on=access().sign_on is not None,
    )
    return make_response(page, status)


def _next() -> str:
    """The page to return to: a path of this site, so that a link cannot lead elsewhere."""
    path = request.values.get("next", "/")
    is_ours = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if is_ours and path.isprintable() else "/"
