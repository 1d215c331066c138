"""The headers that browsers obey: framing, other origins, search engines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flask import Request, Response

from textmill.backend.api_paths import is_api
from textmill.core.settings import Settings

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors {}"
)
_EXPOSED = (
    "Location, ETag, Retry-After, RateLimit, RateLimit-Policy, Textmill-Visitor, Textmill-Ignored,"
    " x-request-id"
)
_METHODS = "GET, POST, DELETE, OPTIONS"
_REQUEST_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Textmill-Visitor,"
    " X-API-Key"
)
_PREFLIGHT_SECONDS = 3_600
# OpenAI's client for browsers sends a dozen headers of its own, whose names change.
_MORE_HEADERS = re.compile(r"[A-Za-z0-9-]+(?:\s*,\s*[A-Za-z0-9-]+)*")
_MAX_MORE_CHARACTERS = 1_000


class BrowserHeaders:
    """Adds the headers of one application's responses."""

    def __init__(self, settings: Settings) -> None:
        """Take the sites that may frame the pages or use the API from the settings."""
        self._policy = page_policy(settings.embed_origins)
        self._origins = frozenset(settings.cors_origins)
        self._is_open = settings.is_open

    def add(self, request: Request, response: Response) -> None:
        """Add them to a response."""
        headers = response.headers
        headers.setdefault("X-Content-Type-Options", "nosniff")
        headers.setdefault("Referrer-Policy", "same-origin")
        headers.setdefault("Content-Security-Policy", self._policy)
        headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
        headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        headers.setdefault("X-Robots-Tag", "noindex")
        if is_api(request.path):
            headers.setdefault("Cache-Control", "no-store")
            self._add_cors(request, response)

    def _add_cors(self, request: Request, response: Response) -> None:
        """Let scripts of the allowed origins read a response; they send a key, not cookies."""
        if not self._origins:
            return
        response.headers.add("Vary", "Origin")
        origin = request.headers.get("Origin", "")
        if origin.lower() not in self._origins:
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            response.headers["Access-Control-Allow-Headers"] = _allowed_headers(request)
            response.headers["Access-Control-Max-Age"] = str(_PREFLIGHT_SECONDS)


def _allowed_headers(request: Request) -> str:
    """Those that the API knows, and those that a page of an allowed origin asks for."""
    asked = request.headers.get("Access-Control-Request-Headers", "")
    if len(asked) > _MAX_MORE_CHARACTERS or not _MORE_HEADERS.fullmatch(asked):
        return _REQUEST_HEADERS
    return f"{_REQUEST_HEADERS}, {asked}"


def page_policy(embed_origins: Sequence[str] = ()) -> str:
    """The content security policy of pages that these sites may show in a frame."""
    ancestors = " ".join(("'self'", *embed_origins)) if embed_origins else "'none'"
    return _PAGE_POLICY.format(ancestors)
