"""Anonymous visitors: a random id in a signed token, sent as a cookie or as a header.

A token that was not signed here is nobody's. Browsers get the token as a cookie, other clients find
it in the response header ``Textmill-Visitor`` and may send it back in the same header.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from flask import Request, Response
from itsdangerous import Signer

COOKIE = "textmill_visitor"
HEADER = "Textmill-Visitor"
ADDRESS_KEY = "textmill.visitor_token"  # in the environment: see visitor_links
COOKIE_SECONDS = 400 * 86_400  # the maximum that browsers allow
_ID = re.compile(r"[0-9a-f]{32}")


class Visitors:
    """Issues and verifies tokens.

    Args:
        secret: signs them; another secret makes all visitors unknown.
        is_embedded: whether the pages may be shown in frames of other sites, where a cookie must
            say so (``SameSite=None``, ``Partitioned``).
    """

    def __init__(self, secret: str, *, is_embedded: bool) -> None:
        self._signer = Signer(
            secret, salt="textmill.visitor", digest_method=hashlib.sha256, key_derivation="hmac"
        )
        self._is_embedded = is_embedded

    def new_id(self) -> str:
        """A new visitor."""
        return secrets.token_hex(16)

    def token(self, visitor_id: str) -> str:
        """The token of a visitor."""
        return self._signer.sign(visitor_id).decode("ascii")

    def id_in(self, token: str) -> str | None:
        """The visitor of a token; ``None`` if it was not signed here.

        The token is compared as a whole: a library that decodes signatures leniently would accept
        other spellings of it.
        """
        found = token.partition(".")[0]
        if not _ID.fullmatch(found):
            return None
        is_ours = secrets.compare_digest(self.token(found).encode(), token.encode())
        return found if is_ours else None

    def known(self, request: Request) -> str | None:
        """The visitor who sent a request, by the header, else the address, else the cookie."""
        in_address = str(request.environ.get(ADDRESS_KEY, ""))
        given = request.headers.get(HEADER) or in_address or request.cookies.get(COOKIE, "")
        return self.id_in(given) if given else None

    def remember(self, request: Request, response: Response, visitor_id: str) -> None:
        """Give the visitor its token; a browser keeps the cookie for 400 days."""
        token = self.token(visitor_id)
        response.headers[HEADER] = token
        set_cookie(request, response, COOKIE, token, is_embedded=self._is_embedded)

    def forget(self, response: Response) -> None:
        """Remove the cookie from the browser."""
        response.delete_cookie(COOKIE, httponly=True, samesite="Lax")


def set_cookie(
    request: Request,
    response: Response,
    name: str,
    value: str,
    *,
    is_embedded: bool,
    max_age: int = COOKIE_SECONDS,
) -> None:
    """Set a cookie that scripts cannot read and other sites cannot send."""
    is_framed = is_embedded and request.is_secure
    response.set_cookie(
        name,
        value,
        max_age=max_age,
        httponly=True,
        samesite="None" if is_framed else "Lax",
        secure=request.is_secure,
        partitioned=is_framed,
    )
