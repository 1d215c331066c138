"""Identifies clients on one's own machine: browsers by a random cookie, others by address.

This owner determines the fair share of the queue and the scope of idempotency keys, never access:
in the mode ``local``, everybody sees everything.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from flask import Request, Response

COOKIE = "textmill_owner"
COOKIE_SECONDS = 400 * 86_400  # the maximum that browsers allow
_WELL_FORMED = re.compile(r"[0-9a-f]{32}")


def owner_id(request: Request) -> str:
    """Return the owner of a request."""
    cookie = request.cookies.get(COOKIE, "")
    if _WELL_FORMED.fullmatch(cookie):
        return f"cookie:{cookie}"
    address = hashlib.sha256((request.remote_addr or "").encode()).hexdigest()
    return f"ip:{address[:32]}"


def remember_owner(request: Request, response: Response) -> Response:
    """Set the cookie if the browser does not have one."""
    if not _WELL_FORMED.fullmatch(request.cookies.get(COOKIE, "")):
        response.set_cookie(
            COOKIE,
            secrets.token_hex(16),
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="Lax",
            secure=request.is_secure,
        )
    return response
