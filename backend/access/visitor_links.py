"""Addresses that name their visitor, for browsers that refuse all cookies inside a frame.

Below ``/visitor/TOKEN/`` is the whole site, for the visitor of that token. All paths of a page lead
there too. A browser gets there by its first form: if it sends one without the cookie that the page
before gave it, the redirect leads to such an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from flask import Request, Response

from textmill.backend.access.visitors import ADDRESS_KEY, Visitors

PREFIX = "/visitor/"
# Attributes whose value is a path of this site, without links for everybody, which must not contain
# the visitor. Texts of users cannot contain a plain quote.
_PATHS = re.compile(rb'\b(href|src|action|formaction|data-[a-z]+)="(/(?!/|shared/)[^"]*)"')
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class VisitorLinks:
    """WSGI middleware that moves a valid token from the path to the environment."""

    def __init__(self, app: Application, visitors: Visitors) -> None:
        self._app = app
        self._visitors = visitors

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Call the application with the path behind the token."""
        path = environ.get("PATH_INFO", "")
        if path.startswith(PREFIX):
            token, slash, rest = path.removeprefix(PREFIX).partition("/")
            if slash and self._visitors.id_in(token) is not None:
                environ[ADDRESS_KEY] = token
                environ["SCRIPT_NAME"] = f"{environ.get('SCRIPT_NAME', '')}{PREFIX}{token}"
                environ["PATH_INFO"] = f"/{rest}"
        return self._app(environ, start_response)


def link_token(request: Request) -> str:
    """The token in the address of a request; empty if there is none."""
    return str(request.environ.get(ADDRESS_KEY, ""))


def lead_to_visitor(response: Response, token: str) -> None:
    """Make a redirect lead to the visitor's address."""
    location = response.headers.get("Location", "")
    if location.startswith("/") and not location.startswith(("//", PREFIX)):
        response.headers["Location"] = f"{PREFIX}{token}{location}"


def keep_visitor(response: Response, token: str) -> None:
    """Make all paths of a page, and a redirect, lead to the visitor's address."""
    lead_to_visitor(response, token)
    if response.mimetype != "text/html" or response.is_streamed:
        return
    root = f"{PREFIX}{token}".encode()

    def with_root(match: re.Match[bytes]) -> bytes:
        name, path = match[1], match[2]
        return match[0] if path.startswith(root) else b'%s="%s%s"' % (name, root, path)

    response.set_data(_PATHS.sub(with_root, response.get_data()))
