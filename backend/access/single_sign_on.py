"""Single sign-on: leads browsers to the provider and back, and knows who has a session.

A session's cookie names the person and the number of their sessions; every request looks both up.
The cookie is signed for the present issuer, client and rules: a change of these settings ends all
sessions.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

import structlog
from flask import Request, Response, make_response, redirect

from textmill.backend.access.hosts import site_address
from textmill.backend.access.sessions import Sessions
from textmill.backend.access.sign_in_attempts import Attempt, Attempts
from textmill.backend.access.sign_in_errors import ProviderUnusable, SignInFailed, SignInLost
from textmill.core.access.identities import SignInRules, identity_of
from textmill.core.access.principals import Principal
from textmill.core.access.users import UserRecord, UserStore
from textmill.core.database import deadlines
from textmill.core.database.connections import REQUEST_SECONDS
from textmill.core.errors import Unauthorized
from textmill.core.oidc_settings import require_packages
from textmill.core.settings import Settings

CALLBACK_PATH = "/sign-in/sso/callback"
SESSION_SECONDS = 12 * 3_600  # a working day; so old what the provider said may be at most
MAX_CODE_CHARACTERS = 4096
_PROVIDER = "textmill.backend.oidc.provider"
_ERROR_CODE = re.compile(r"[a-z_ ]{1,40}")
log = structlog.get_logger(__name__)


class IdentityProvider(Protocol):
    """What ``backend.oidc.provider`` does."""

    issuer: str

    def address_for(self, attempt: Attempt) -> str:
        """Where a browser signs in."""
        ...

    def claims_of(self, attempt: Attempt, code: str) -> Mapping[str, object]:
        """Who has signed in."""
        ...


class SingleSignOn:
    """The single sign-on of one application."""

    def __init__(
        self, settings: Settings, secret: str, users: UserStore, provider: IdentityProvider
    ) -> None:
        """Take the rules from the settings; ``secret`` signs the cookies."""
        is_embedded = bool(settings.embed_origins)
        self.users = users
        self._provider = provider
        self._rules = SignInRules.of(settings)
        self._attempts = Attempts(secret, is_embedded=is_embedded)
        self._sessions = Sessions(
            secret,
            is_embedded=is_embedded,
            salt=f"textmill.user-session.{_digest(settings)}",
            seconds=SESSION_SECONDS,
        )

    def begin(self, request: Request, next_path: str) -> Response:
        """Lead a browser to the provider.

        Raises:
            SignInFailed: the provider does not answer.
            Misdirected: the request names no host.
        """
        attempt = Attempt.new(site_address(request) + CALLBACK_PATH, next_path)
        with _logged_failures():
            address = self._provider.address_for(attempt)
        response = make_response(redirect(address, 303))
        self._attempts.begin(request, response, attempt)
        return response

    def finish(self, request: Request) -> tuple[UserRecord, str]:
        """Who comes back from the provider, and the page to show.

        Raises:
            SignInFailed: nobody is signed in; the sentence says why.
            Forbidden: the person is disabled.
        """
        with _logged_failures():
            attempt, code = self._answered(request)
            claims = self._provider.claims_of(attempt, code)
            try:
                identity = identity_of(self._provider.issuer, claims)
            except ValueError:
                raise ProviderUnusable("no usable subject") from None
            if not self._rules.may_sign_in(identity):
                raise SignInFailed(
                    "The provider knows you, but the operator of this service has not allowed your"
                    " account.",
                    "not in TEXTMILL_OIDC_ALLOWED",
                )
        deadlines.begin(REQUEST_SECONDS)  # the time of the provider is not the database's
        user = self.users.sign_in(identity, is_admin=self._rules.is_admin(identity))
        return user, attempt.next

    def remember(self, request: Request, response: Response, user: UserRecord) -> None:
        """Begin a session of a person in this browser."""
        self._sessions.begin(request, response, f"{user.id}-{user.session_number}")

    def end_sessions(self, principal: Principal) -> None:
        """Sign a person out, in all browsers."""
        self.users.end_sessions(principal.owner_id.removeprefix("user:"))

    def forget_attempt(self, response: Response) -> None:
        """End the sign-in that this browser began, whatever came of it."""
        self._attempts.end(response)

    def principal(self, request: Request) -> Principal | None:
        """The person whose session a request has; ``None`` if there is none."""
        user_id, _, number = (self._sessions.holder(request) or "").partition("-")
        if not number.isdecimal():
            return None
        with contextlib.suppress(Unauthorized):  # the session has ended
            return self.users.by_session(user_id, int(number)).principal
        return None

    def _answered(self, request: Request) -> tuple[Attempt, str]:
        """The sign-in to which an answer of the provider belongs, and its code."""
        attempt, given = self._attempts.begun(request), request.args
        if attempt is None or not attempt.has_state(given.get("state", "")):
            raise SignInLost
        if given.get("iss", self._provider.issuer) != self._provider.issuer:  # RFC 9207
            raise SignInLost
        if "error" in given:
            raise _refused(given["error"])
        code = given.get("code", "")
        if not 0 < len(code) <= MAX_CODE_CHARACTERS:
            raise _refused("no code")
        return attempt, code


def single_sign_on(settings: Settings, secret: str, users: UserStore) -> SingleSignOn | None:
    """The single sign-on that the settings describe; ``None`` if there is none.

    Raises:
        SettingsError: its packages are not installed.
    """
    if settings.oidc_issuer is None:
        return None
    require_packages(settings)
    provider = importlib.import_module(_PROVIDER).Provider(settings)
    return SingleSignOn(settings, secret, users, provider)


def _digest(settings: Settings) -> str:
    """A hash of what decides who a person is and may do."""
    rules = (
        settings.oidc_issuer,
        settings.oidc_client_id,
        sorted(settings.oidc_admins),
        sorted(settings.oidc_allowed),
    )
    return hashlib.sha256(repr(rules).encode()).hexdigest()


def _refused(code: str) -> SignInFailed:
    """An error of RFC 6749, section 4.1.2.1, without its description, which anybody can write."""
    if code == "access_denied":
        message = "The provider of the single sign-on has denied access, or you have canceled."
        return SignInFailed(message, code)
    shown = code if _ERROR_CODE.fullmatch(code) else "unknown"
    return SignInFailed(
        f"The provider of the single sign-on answers with an error ({shown}); begin again.", shown
    )


@contextlib.contextmanager
def _logged_failures() -> Iterator[None]:
    """Tell the operator why somebody could not sign in."""
    try:
        yield
    except SignInFailed as error:
        log.warning(error.code, reason=error.reason)
        raise
