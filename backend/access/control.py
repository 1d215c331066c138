"""Decides, before a view runs, who asks and whether they may.

The principal of a request is found once. ``backend.current.services`` restricts the services to it,
so that no view can show or change what its client may not.
"""

from __future__ import annotations

import contextlib
import hmac
from urllib.parse import urlsplit

from flask import Request, Response, g, request

from textmill.backend.access.hosts import bracketed, check_host
from textmill.backend.access.policy import NEEDS, PUBLIC
from textmill.backend.access.sessions import Sessions
from textmill.backend.access.single_sign_on import SingleSignOn
from textmill.backend.access.visitor_links import keep_visitor, lead_to_visitor, link_token
from textmill.backend.access.visitors import Visitors
from textmill.backend.api_paths import is_api
from textmill.backend.owner import owner_id
from textmill.backend.server.limits import visitor_of
from textmill.backend.services.container import Services
from textmill.core.access.budgets import rate_limit_headers
from textmill.core.access.keys import KeyStore
from textmill.core.access.principals import (
    NOBODY,
    Principal,
    local,
    visitor,
)
from textmill.core.errors import Forbidden, Unauthorized
from textmill.core.settings import Settings

EXTENSION = "textmill_access"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_REALM = 'Bearer realm="textmill"'


class AccessControl:
    """The rules of one application."""

    def __init__(
        self, settings: Settings, secret: str, keys: KeyStore, sign_on: SingleSignOn | None = None
    ) -> None:
        """Set the rules.

        Args:
            settings: the mode, and the names of hosts and origins.
            secret: signs visitors' tokens and sessions.
            keys: the API keys.
            sign_on: the single sign-on, if there is one.
        """
        is_embedded = bool(settings.embed_origins)
        self.mode = settings.access
        self.kept_days = settings.kept_days
        self.cancels_abandoned = settings.cancel_on_disconnect == "on"
        self.joins_messages = settings.chat_fallback == "plain"
        self.max_streams_per_owner = settings.max_streams_per_owner if settings.is_open else 0
        self._secret = secret.encode()
        self.keys = keys
        self.sign_on = sign_on
        self.visitors = Visitors(secret, is_embedded=is_embedded)
        self.sessions = Sessions(secret, is_embedded=is_embedded)
        self.is_open = settings.is_open
        # The address on which the server listens cannot be given to another site either.
        self._hosts = frozenset({*settings.allowed_hosts, bracketed(settings.host.lower())})
        self._origins = frozenset(settings.cors_origins)

    def before(self) -> None:
        """Refuse a request for another host or from another site, or without the scope it needs.

        Raises:
            Misdirected, Forbidden, Unauthorized: the request is refused.
        """
        g.principal = NOBODY
        check_host(request, self._hosts)
        if request.method == "OPTIONS":  # answered by Flask; a browser asks without credentials
            return
        if request.method not in _SAFE_METHODS:
            self._refuse_cross_site()
        if request.endpoint is None:  # there is no such address, or not with this method
            return
        needed = NEEDS.get(request.endpoint)
        if needed is None:
            raise Forbidden("This address has no rule of access.")
        try:
            g.principal = self._identify(makes_visitor=needed != PUBLIC)
        except Unauthorized:
            if needed != PUBLIC:
                raise
        if needed != PUBLIC and not g.principal.may(needed):
            raise self._refusal(g.principal, needed)

    def after(self, response: Response) -> Response:
        """Give a new visitor its token, and say which credentials are missing."""
        limited: Services | None = g.get("services")
        if limited is not None and request.method == "POST":
            response.headers.update(rate_limit_headers(limited.submission.quotas))
        new = g.pop("new_visitor", None)
        if new is not None and response.status_code < 400:
            self.visitors.remember(request, response, new)
            if request.method == "POST" and not is_api(request.path):
                # The page with this form set a cookie, and the browser did not send it.
                lead_to_visitor(response, self.visitors.token(new))
        token = link_token(request)
        if token:
            keep_visitor(response, token)
        if response.status_code == 401:
            response.headers["WWW-Authenticate"] = _REALM
        return response

    def _identify(self, *, makes_visitor: bool) -> Principal:
        """The principal of the request.

        Raises:
            Unauthorized: it has a key that is not valid.
        """
        if not self.is_open:
            return local(owner_id(request))
        token = _token(request)
        if token is not None:
            return self.keys.authenticate(token).principal
        person = None if self.sign_on is None else self.sign_on.principal(request)
        if person is not None:
            return person
        key_id = self.sessions.holder(request)
        if key_id is not None:
            with contextlib.suppress(Unauthorized):  # the session has ended with its key
                return self.keys.by_id(key_id).principal
        if self.mode != "demo":
            return NOBODY
        known = self.visitors.known(request)
        if known is not None:
            return visitor(known, self._address_id())
        if not makes_visitor:
            return NOBODY
        g.new_visitor = self.visitors.new_id()
        return visitor(g.new_visitor, self._address_id())

    def _address_id(self) -> str:
        """A keyed hash of the client's address; of its network, for IPv6."""
        address = visitor_of(request.remote_addr or "").encode()
        return hmac.digest(self._secret, address, "sha256").hex()[:32]

    def _refusal(self, principal: Principal, needed: str) -> Unauthorized | Forbidden:
        if principal.kind in ("nobody", "visitor"):
            return Unauthorized(
                f"This needs an API key with the scope {needed}: send it as"
                " `Authorization: Bearer tm_…`, or sign in with it at /sign-in."
            )
        if principal.kind == "user":
            return Forbidden(f"Your account does not have the scope {needed}.")
        return Forbidden(f"This API key does not have the scope {needed}.")

    def _refuse_cross_site(self) -> None:
        """Refuse a request that a page of another site made a browser send.

        Browsers report the origin of a request in headers that a page cannot forge:
        ``Sec-Fetch-Site`` (all browsers since 2023) and ``Origin``, which every cross-site POST
        has. A request with neither does not come from a browser.
        """
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() in self._origins and is_api(request.path):
            return
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            is_ours = site in ("same-origin", "none")
        else:
            is_ours = origin is None or urlsplit(origin).netloc == request.host
        if not is_ours:
            raise Forbidden("This request was sent by a page of another site.")


def _token(asked: Request) -> str | None:
    """The API key in a request's headers."""
    own = asked.headers.get("X-API-Key")
    if own:
        return own.strip()
    scheme, _, token = asked.headers.get("Authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
