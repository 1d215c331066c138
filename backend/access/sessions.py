"""Browsers that have signed in: a signed cookie that names an API key or a person.

The cookie contains the key's id, not the key. Every request looks the key or the person up, so that
a session ends when the key is revoked or expires, or the person is disabled.
"""

from __future__ import annotations

import hashlib

from flask import Request, Response
from itsdangerous import BadSignature, TimestampSigner

from textmill.backend.access.visitors import set_cookie

COOKIE = "textmill_session"
SESSION_SECONDS = 30 * 86_400


class Sessions:
    """Issues and verifies the session cookies of one kind; a browser has one session at most.

    Args:
        secret: signs them.
        is_embedded: whether the pages may be shown in frames of other sites.
        salt: of the kind; a cookie of another kind is nobody's.
        seconds: the longest that a session lasts.
    """

    def __init__(
        self,
        secret: str,
        *,
        is_embedded: bool,
        salt: str = "textmill.session",
        seconds: int = SESSION_SECONDS,
    ) -> None:
        self._signer = TimestampSigner(
            secret, salt=salt, digest_method=hashlib.sha256, key_derivation="hmac"
        )
        self._is_embedded = is_embedded
        self._seconds = seconds

    def holder(self, request: Request) -> str | None:
        """Whom the cookie of a request names; ``None`` if it has none that is valid."""
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            return self._signer.unsign(cookie.encode(), max_age=self._seconds).decode("ascii")
        except (BadSignature, UnicodeError):
            return None

    def begin(self, request: Request, response: Response, holder: str) -> None:
        """Sign this browser in, as the id of a key or the name of a person's session."""
        value = self._signer.sign(holder).decode("ascii")
        set_cookie(
            request,
            response,
            COOKIE,
            value,
            is_embedded=self._is_embedded,
            max_age=self._seconds,
        )

    def end(self, response: Response) -> None:
        """Sign this browser out."""
        response.delete_cookie(COOKIE, httponly=True, samesite="Lax")
