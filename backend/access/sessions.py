"""Browsers that have signed in with an API key: a signed cookie that names the key.

The cookie contains the key's id, not the key. Every request looks the key up, so that a session
ends when the key is revoked or expires.
"""

from __future__ import annotations

import hashlib

from flask import Request, Response
from itsdangerous import BadSignature, TimestampSigner

from textmill.backend.access.visitors import set_cookie

COOKIE = "textmill_session"
SESSION_SECONDS = 30 * 86_400


class Sessions:
    """Issues and verifies session cookies."""

    def __init__(self, secret: str, *, is_embedded: bool) -> None:
        self._signer = TimestampSigner(
            secret, salt="textmill.session", digest_method=hashlib.sha256, key_derivation="hmac"
        )
        self._is_embedded = is_embedded

    def key_id(self, request: Request) -> str | None:
        """The id of the key with which this browser signed in; ``None`` if it has not."""
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            return self._signer.unsign(cookie.encode(), max_age=SESSION_SECONDS).decode("ascii")
        except (BadSignature, UnicodeError):
            return None

    def begin(self, request: Request, response: Response, key_id: str) -> None:
        """Sign this browser in."""
        value = self._signer.sign(key_id).decode("ascii")
        set_cookie(
            request,
            response,
            COOKIE,
            value,
            is_embedded=self._is_embedded,
            max_age=SESSION_SECONDS,
        )

    def end(self, response: Response) -> None:
        """Sign this browser out."""
        response.delete_cookie(COOKIE, httponly=True, samesite="Lax")
