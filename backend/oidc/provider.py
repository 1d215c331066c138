"""The provider of the single sign-on, by OpenID Connect: where to go, and who has come back.

Authorization code with PKCE. Importing this module needs the extra ``oidc``: it uses Authlib, and
joserfc for the signatures, as Authlib does itself.

Sources: OpenID Connect Core 1.0, sections 3.1.2.1, 3.1.3.7 and 5.3; Discovery 1.0, section 4;
RFC 7636; RFC 9207. Deviation: the keys are fetched with each sign-in, so that a key that the
provider has changed or withdrawn needs no rule.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.base_client import OAuthError
from authlib.oidc.core import CodeIDToken
from authlib.oidc.discovery import get_well_known_url
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, import_key
from joserfc.jws import JWSRegistry
from requests import RequestException

from textmill.backend.access.sign_in_attempts import Attempt
from textmill.backend.access.sign_in_errors import ProviderUnusable, SignInFailed
from textmill.backend.oidc.provider_session import Steps, provider_session
from textmill.core.setting_values import can_carry_secrets
from textmill.core.settings import Settings

# With keys that only the provider has: neither ``none`` nor HS256, whose key is not secret here.
ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
)
_KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
METADATA_SECONDS = 300.0  # a provider changes its addresses with weeks of notice
CLOCK_SECONDS = 60  # by which the clocks may differ
# What reading a malformed answer raises. No message of theirs is shown or logged.
_MALFORMED = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
_CODE = re.compile(r"\w{1,40}")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Metadata:
    """The part of a discovery document that is used."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    client_auth: str


class Provider:
    """One client at one provider. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        """Take issuer, client and scopes from the settings; nothing is sent yet."""
        self.issuer = str(settings.oidc_issuer)
        self._client_id = str(settings.oidc_client_id)
        self._client_secret = str(settings.oidc_client_secret)
        self._scopes = settings.oidc_scopes
        self._steps = Steps()
        self._lock = threading.Lock()
        self._known: tuple[float, _Metadata] | None = None  # guarded by _lock

    def address_for(self, attempt: Attempt) -> str:
        """Where a browser signs in.

        Raises:
            ProviderUnusable: the provider does not answer, or its answer cannot be used.
        """

        def step(until: float) -> str:
            metadata = self._metadata(until)
            session = self._session(until, attempt, metadata)
            address, _ = session.create_authorization_url(
                metadata.authorization_endpoint,
                state=attempt.state,
                code_verifier=attempt.verifier,
                nonce=attempt.nonce,
            )
            return str(address)

        return self._bounded(step)

    def claims_of(self, attempt: Attempt, code: str) -> Mapping[str, Any]:
        """Who has signed in, by the code of the provider's answer.

        Raises:
            ProviderUnusable: the provider does not answer, or its answer cannot be used.
            SignInFailed: it refuses the code, or the identity token is not valid.
        """

        def step(until: float) -> Mapping[str, Any]:
            metadata = self._metadata(until)
            with self._session(until, attempt, metadata) as session:
                try:
                    token = session.fetch_token(
                        metadata.token_endpoint,
                        grant_type="authorization_code",
                        code=code,
                        code_verifier=attempt.verifier,
                        allow_redirects=False,
                    )
                except OAuthError as error:
                    raise SignInFailed(
                        "The provider of the single sign-on has refused to complete this sign-in;"
                        " begin again.",
                        f"the token endpoint answers {_code_of(error)}",
                    ) from error
                keys = _get(session, metadata.jwks_uri, withhold_token=True)
                claims = self._verified(token, keys, attempt)
                if metadata.userinfo_endpoint is None or "email" in claims:
                    return claims
                return _completed(claims, _get(session, metadata.userinfo_endpoint))

        return self._bounded(step)

    def _bounded(self, step: Callable[[float], Result]) -> Result:
        try:
            return self._steps.run(step)
        except RequestException as error:
            raise ProviderUnusable(type(error).__name__) from error
        except (*_MALFORMED, AuthlibBaseError) as error:
            raise ProviderUnusable(f"malformed answer: {type(error).__name__}") from error

    def _session(self, until: float, attempt: Attempt, metadata: _Metadata) -> Any:
        return provider_session(
            until,
            self.issuer,
            client_id=self._client_id,
            client_secret=self._client_secret,
            token_endpoint_auth_method=metadata.client_auth,
            scope=self._scopes,
            redirect_uri=attempt.redirect_uri,
            code_challenge_method="S256",
            leeway=0,  # a token for the next second is old enough
        )

    def _metadata(self, until: float) -> _Metadata:
        """What the discovery document says, at most five minutes old."""
        with self._lock:
            if self._known is not None and time.monotonic() - self._known[0] < METADATA_SECONDS:
                return self._known[1]
        with provider_session(until, self.issuer) as session:
            address = get_well_known_url(self.issuer, external=True)
            metadata = self._understood(_get(session, address, withhold_token=True))
        with self._lock:
            self._known = (time.monotonic(), metadata)
        return metadata

    def _understood(self, document: Mapping[str, Any]) -> _Metadata:
        if document.get("issuer") != self.issuer:
            raise ProviderUnusable("its discovery document names another issuer")
        userinfo = document.get("userinfo_endpoint")
        places = [document["authorization_endpoint"], document["token_endpoint"]]
        places += [document["jwks_uri"], *([] if userinfo is None else [userinfo])]
        if not all(isinstance(place, str) and can_carry_secrets(place) for place in places):
            raise ProviderUnusable("an address of the provider does not begin with https")
        methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        usable = [m for m in ("client_secret_basic", "client_secret_post") if m in methods]
        if not usable:
            raise ProviderUnusable("it takes no client secret (client_secret_basic or _post)")
        return _Metadata(places[0], places[1], places[2], userinfo, usable[0])

    def _verified(
        self, token: Mapping[str, Any], keys: Mapping[str, Any], attempt: Attempt
    ) -> Mapping[str, Any]:
        """The claims of an identity token that is meant for this client and this sign-in."""
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        try:
            signed = jwt.decode(str(token["id_token"]), _key_set(keys), registry=registry)
            expected = {
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self._client_id},
            }
            given = {
                "nonce": attempt.nonce,
                "client_id": self._client_id,
                "access_token": token.get("access_token"),
            }
            claims = CodeIDToken(signed.claims, signed.header, expected, given)
            claims.validate(leeway=CLOCK_SECONDS)
        except _MALFORMED as error:
            raise SignInFailed(
                "The identity that the provider of the single sign-on has sent is not valid for"
                " this service; begin again, or ask the operator.",
                f"identity token: {_code_of(error)}",
            ) from error
        return dict(claims)


def _code_of(error: Exception) -> str:
    """The short code of an error, and the claim that it is about."""
    code = str(getattr(error, "error", type(error).__name__))
    claim = getattr(error, "claim", None)
    shown = code if _CODE.fullmatch(code) else "another error"
    return f"{shown} ({claim})" if claim in CodeIDToken.REGISTERED_CLAIMS else shown


def _key_set(document: Mapping[str, Any]) -> KeySet:
    """The public keys for signatures; those of kinds that are unknown here are left out."""
    found = [k for k in document["keys"] if k.get("kty") in _KEY_TYPES and k.get("use") != "enc"]
    keys = []
    for key in found:
        try:
            keys.append(import_key(key))
        except _MALFORMED:  # another curve, for example
            continue
    return KeySet(keys)


def _get(session: Any, address: str, **options: Any) -> Mapping[str, Any]:
    """The JSON object at an address of the provider."""
    response = session.get(address, allow_redirects=False, **options)
    response.raise_for_status()
    document = response.json()
    if not isinstance(document, dict):
        raise ProviderUnusable("an answer of the provider is not a JSON object")
    return document


def _completed(claims: Mapping[str, Any], further: Mapping[str, Any]) -> Mapping[str, Any]:
    """The claims with those that the provider keeps for its userinfo endpoint.

    Raises:
        ProviderUnusable: they are about somebody else.
    """
    if further.get("sub") != claims.get("sub"):
        raise ProviderUnusable("its userinfo endpoint describes another subject")
    return {**further, **claims}
