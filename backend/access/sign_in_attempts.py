"""A sign-in that a browser has begun at the provider, in a signed cookie of ten minutes.

The cookie binds the provider's answer to the browser that asked: an answer with another state is
refused, so that nobody can sign in somebody else's browser.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import asdict, dataclass

from flask import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

from textmill.backend.access.visitors import set_cookie

COOKIE = "textmill_sign_in"
ATTEMPT_SECONDS = 600  # to type a password and a second factor
_RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sign-in.

    Attributes:
        state: comes back in the address of the answer.
        nonce: comes back inside the identity token.
        verifier: of PKCE (RFC 7636); the provider gets its SHA-256 first, and itself with the code.
        redirect_uri: where the answer was asked to go.
        next: the page to show afterwards, a path of this site.
    """

    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    next: str

    @classmethod
    def new(cls, redirect_uri: str, next_path: str) -> Attempt:
        """A sign-in with new random values."""
        state, nonce, verifier = (secrets.token_urlsafe(_RANDOM_BYTES) for _ in range(3))
        return cls(state, nonce, verifier, redirect_uri, next_path)

    def has_state(self, state: str) -> bool:
        """Whether an answer belongs to this sign-in."""
        return secrets.compare_digest(self.state.encode(), state.encode("utf-8", "replace"))


class Attempts:
    """Issues and verifies the cookies."""

    def __init__(self, secret: str, *, is_embedded: bool) -> None:
        self._serializer = URLSafeTimedSerializer(
            secret, salt="textmill.sign-in", signer_kwargs={"digest_method": hashlib.sha256}
        )
        self._is_embedded = is_embedded

    def begun(self, request: Request) -> Attempt | None:
        """The sign-in that this browser has begun last; ``None`` if there is none."""
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            return Attempt(**self._serializer.loads(cookie, max_age=ATTEMPT_SECONDS))
        except (BadData, TypeError):  # not ours or too old; or of a release with other fields
            return None

    def begin(self, request: Request, response: Response, attempt: Attempt) -> None:
        """Let a browser remember a sign-in; it forgets the one before."""
        set_cookie(
            request,
            response,
            COOKIE,
            str(self._serializer.dumps(asdict(attempt))),
            is_embedded=self._is_embedded,
            max_age=ATTEMPT_SECONDS,
        )

    def end(self, response: Response) -> None:
        """Let a browser forget its sign-in."""
        response.delete_cookie(COOKIE, httponly=True, samesite="Lax")
