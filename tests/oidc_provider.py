"""A small OpenID provider for tests, over real HTTP: discovery, authorize, token, keys, userinfo.

It is as strict as a real one: it checks client, secret, redirect address and PKCE, and takes each
code once. Its attributes make it answer wrongly.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from flask import Flask, Response, jsonify, redirect, request
from joserfc import jwt
from joserfc.jwk import RSAKey
from werkzeug.serving import make_server

CLIENT_ID = "textmill"
CLIENT_SECRET = "a-secret-that-no-log-contains"
Claims = dict[str, Any]


def new_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)


class Provider:
    """The provider and what it will do next.

    Attributes:
        person: the claims about whoever signs in next.
        change: changes the claims of an identity token before it is signed.
        sign: makes the token of its claims.
        keys: those that it publishes; the first one signs.
        has_page: whether people have to press a button before they come back.
        extra: further claims, which only the userinfo endpoint tells.
        asked: the paths of all requests.
        answers: paths that are answered differently.
    """

    def __init__(self) -> None:
        self._server = make_server("127.0.0.1", 0, self._app(), threaded=True)
        self.issuer = f"http://127.0.0.1:{self._server.port}"
        self.keys = [new_key()]
        self.reset()

    def reset(self) -> None:
        """Forget what a test has set."""
        self.keys = self.keys[:1]
        self.person: Claims = {"sub": "anna-1", "name": "Anna"}
        self.change: Callable[[Claims], Claims] = dict
        self.sign: Callable[[Claims], str] = self.signed
        self.has_page = False
        self.extra: Claims = {}
        self.asked: list[str] = []
        self.answers: dict[str, Callable[[], Response]] = {}
        self.metadata: Claims = {}
        self._codes: dict[str, dict[str, str]] = {}
        self._tokens: dict[str, Claims] = {}

    def settings(self, **further: str) -> dict[str, str]:
        """The settings of a Textmill that trusts it."""
        return {
            "TEXTMILL_OIDC_ISSUER": self.issuer,
            "TEXTMILL_OIDC_CLIENT_ID": CLIENT_ID,
            "TEXTMILL_OIDC_CLIENT_SECRET": CLIENT_SECRET,
            **further,
        }

    def signed(self, claims: Claims, key: RSAKey | None = None) -> str:
        key = key or self.keys[0]
        return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)

    @contextmanager
    def running(self) -> Iterator[Provider]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield self
        self._server.shutdown()
        self._server.server_close()
        thread.join()

    def _app(self) -> Flask:
        app = Flask("provider")
        app.before_request(self._note)
        app.add_url_rule("/.well-known/openid-configuration", view_func=self._discovery)
        app.add_url_rule("/authorize", view_func=self._authorize)
        app.add_url_rule("/token", view_func=self._token, methods=["POST"])
        app.add_url_rule("/jwks", view_func=self._jwks)
        app.add_url_rule("/userinfo", view_func=self._userinfo)
        return app

    def _note(self) -> Response | None:
        self.asked.append(request.path)
        other = self.answers.get(request.path)
        return None if other is None else other()

    def _discovery(self) -> Response:
        places = {"authorization": "authorize", "token": "token", "userinfo": "userinfo"}
        document = {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/jwks",
            **{f"{name}_endpoint": f"{self.issuer}/{path}" for name, path in places.items()},
        }
        return jsonify({**document, **self.metadata})

    def _authorize(self) -> Response | str:
        given = request.args
        assert given["client_id"] == CLIENT_ID
        assert given["response_type"] == "code"
        assert given["code_challenge_method"] == "S256"
        assert "openid" in given["scope"].split()
        code = secrets.token_urlsafe()
        wanted = ("redirect_uri", "nonce", "code_challenge")
        self._codes[code] = {name: given[name] for name in wanted}
        answer = urlencode({"code": code, "state": given["state"], "iss": self.issuer})
        address = f"{given['redirect_uri']}?{answer}"
        if self.has_page:
            return f'<h1>The provider</h1><a href="{address}">Go on</a>'.replace("&", "&amp;")
        return redirect(address)  # type: ignore[return-value]

    def _token(self) -> Response:
        given, form = request.authorization, request.form
        pair = (given.username, given.password) if given else (None, None)
        if "client_secret" in form:
            pair = (form["client_id"], form["client_secret"])
        if pair != (CLIENT_ID, CLIENT_SECRET):
            return self._refusal("invalid_client", 401)
        kept = self._codes.pop(form["code"], None)
        hashed = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(hashed).rstrip(b"=").decode()
        if (
            kept is None
            or kept["redirect_uri"] != form["redirect_uri"]
            or kept["code_challenge"] != challenge
        ):
            return self._refusal("invalid_grant", 400)
        now, token = int(time.time()), secrets.token_urlsafe()
        own = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300}
        claims = {**own, "nonce": kept["nonce"], **self.person}
        self._tokens[f"Bearer {token}"] = {"sub": self.person.get("sub"), **self.extra}
        return jsonify(
            access_token=token,
            token_type="Bearer",
            expires_in=300,
            id_token=self.sign(self.change(claims)),
        )

    def _refusal(self, error: str, status: int) -> Response:
        answer = jsonify(error=error, error_description="<script>not shown</script>")
        answer.status_code = status
        return answer

    def _jwks(self) -> Response:
        return jsonify(keys=[key.as_dict(private=False) for key in self.keys])

    def _userinfo(self) -> Response:
        return jsonify(self._tokens[request.headers["Authorization"]])
