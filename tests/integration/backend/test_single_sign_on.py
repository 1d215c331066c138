"""Single sign-on against a real provider, with every wrong answer that it may give."""

from __future__ import annotations

import base64
import hmac
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from flask import Response
from flask.testing import FlaskClient
from joserfc import jwt
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from tests.integration.backend.conftest import JOBS, Site, Sites
from tests.integration.backend.test_access_matrix import BODY, ELSEWHERE
from tests.oidc_provider import CLIENT_ID, CLIENT_SECRET, Claims, Provider, new_key
from textmill.backend.access.sessions import COOKIE as SESSION
from textmill.backend.access.sign_in_attempts import ATTEMPT_SECONDS
from textmill.backend.access.sign_in_attempts import COOKIE as ATTEMPT
from textmill.backend.oidc.provider_session import MAX_ANSWER_BYTES, STEP_SECONDS
from textmill.cli.up import run_up
from textmill.core.access.identities import user_id
from textmill.core.access.users import UserStore
from textmill.core.errors import SettingsError
from textmill.core.settings import Settings

HOST = "team.example.org"
BASE = f"https://{HOST}"
VERIFIED = {"email": "Anna@example.org", "email_verified": True}
ADMINS = {"TEXTMILL_OIDC_ADMINS": "anna@example.org"}
LONG_AGO = 3_600
# What is about the protocol alone runs on one database.
on_one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def team(make_site: Sites, provider: Provider) -> Callable[..., Site]:
    """Makes a site in the mode team that trusts the provider."""

    def make(**settings: str) -> Site:
        hosts: Any = {"TEXTMILL_ACCESS": "team", "TEXTMILL_ALLOWED_HOSTS": HOST}
        return make_site(**{**hosts, **provider.settings(), **settings})

    return make


def begin(browser: FlaskClient, next_path: str = "/history", **options: Any) -> TestResponse:
    query = {"next": next_path}
    return browser.get("/sign-in/sso", query_string=query, base_url=BASE, **options)


def pressed(address: str) -> str:
    """Where the provider sends a browser back: the address without this site's name."""
    answer = requests.get(address, allow_redirects=False, timeout=5)
    assert answer.status_code == 302
    back = answer.headers["Location"]
    assert back.startswith(f"{BASE}/sign-in/sso/callback?")
    return back.removeprefix(BASE)


def sign_in(browser: FlaskClient, next_path: str = "/history") -> TestResponse:
    begun = begin(browser, next_path)
    assert begun.status_code == 303, begun.text
    return browser.get(pressed(begun.headers["Location"]), base_url=BASE)


def is_signed_in(browser: FlaskClient) -> bool:
    return browser.get("/history", base_url=BASE).status_code == 200


def refused(browser: FlaskClient, answer: TestResponse, status: int) -> str:
    """Check that nobody is signed in, and return the page."""
    assert answer.status_code == status, answer.text
    assert not any(cookie.startswith(SESSION) for cookie in answer.headers.getlist("Set-Cookie"))
    assert not is_signed_in(browser)
    assert 'name="key"' in answer.text  # the way by key
    assert "<script>not shown" not in answer.text
    return answer.text


# ---- the way in -----------------------------------------------------------------------------


def test_a_person_signs_in_and_comes_back_to_the_page(
    team: Callable[..., Site], provider: Provider
) -> None:
    site = team()
    browser = site.app.test_client()
    assert "Sign in with single sign-on" in browser.get("/sign-in", base_url=BASE).text
    provider.person |= VERIFIED
    answer = sign_in(browser, "/history?q=a")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/history?q=a"
    (cookie,) = [c for c in answer.headers.getlist("Set-Cookie") if c.startswith(SESSION)]
    for word in ("HttpOnly", "Secure", "SameSite=Lax", "Max-Age=43200"):
        assert word in cookie
    made = browser.post(JOBS, json=BODY, base_url=BASE)
    assert made.status_code == 202
    page = browser.get("/sign-in", base_url=BASE).text
    assert "anna@example.org" in page
    assert browser.get("/admin", base_url=BASE).status_code == 403
    browser.post("/sign-out", base_url=BASE)
    assert not is_signed_in(browser)


def test_the_request_has_state_nonce_and_pkce_and_nothing_that_is_secret(
    team: Callable[..., Site], provider: Provider
) -> None:
    browser = team().app.test_client()
    begun = begin(browser)
    asked = {name: value[0] for name, value in parse_qs(urlsplit(begun.location).query).items()}
    assert asked["code_challenge_method"] == "S256"
    assert asked["scope"] == "openid profile email"
    assert asked["redirect_uri"] == f"{BASE}/sign-in/sso/callback"
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    assert all(len(asked[name]) >= 43 for name in ("state", "nonce", "code_challenge"))
    assert CLIENT_SECRET not in begun.location
    again = parse_qs(urlsplit(begin(browser).location).query)
    assert again["state"] != [asked["state"]]
    assert again["nonce"] != [asked["nonce"]]


def test_the_same_person_has_the_same_texts_whatever_the_email(
    team: Callable[..., Site], provider: Provider
) -> None:
    site = team()
    first, second, other = (site.app.test_client() for _ in range(3))
    provider.person |= VERIFIED
    sign_in(first)
    job = first.post(JOBS, json=BODY, base_url=BASE).get_json()["links"]["self"]
    provider.person |= {"email": "new@example.org", "name": "Anna B."}
    sign_in(second)
    assert second.get(job, base_url=BASE).status_code == 200
    provider.person = {"sub": "carl-2", "name": "Anna", **VERIFIED}  # has her old email now
    sign_in(other)
    assert other.get(job, base_url=BASE).status_code == 404
    (anna,) = [u for u in UserStore(site.services.store.engine).all() if u.name == "Anna B."]
    assert anna.id == user_id(provider.issuer, "anna-1")
    assert anna.email == "new@example.org"


def test_the_provider_may_tell_the_email_at_its_userinfo_endpoint(
    team: Callable[..., Site], provider: Provider
) -> None:
    browser = team(TEXTMILL_OIDC_ALLOWED="@example.org").app.test_client()
    provider.extra = {**VERIFIED, "name": "ignored: the identity token has one"}
    assert sign_in(browser).status_code == 303
    assert "/userinfo" in provider.asked
    provider.extra |= {"sub": "somebody-else"}
    refused(browser := team().app.test_client(), sign_in(browser), 503)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
@on_one_database
def test_the_client_names_its_secret_as_the_provider_wants(
    team: Callable[..., Site], provider: Provider, method: str
) -> None:
    provider.metadata = {"token_endpoint_auth_methods_supported": [method, "private_key_jwt"]}
    assert sign_in(team().app.test_client()).status_code == 303


# ---- who may --------------------------------------------------------------------------------

ALLOWED = "carl@example.org,@example.com,writers"
PEOPLE: list[tuple[Claims, bool]] = [
    ({"email": "carl@example.org", "email_verified": True}, True),
    ({"email": "CARL@Example.org", "email_verified": "true"}, True),
    ({"email": "x@example.com", "email_verified": True}, True),
    ({"groups": ["readers", "writers"]}, True),
    ({"groups": "writers"}, True),
    ({"email": "carl@example.org", "email_verified": False}, False),
    ({"email": "carl@example.org"}, False),
    ({"email": "carl@example.org", "email_verified": "false"}, False),
    ({"email": "x@evil.example.com", "email_verified": True}, False),
    ({"email": "x@example.com@evil.example", "email_verified": True}, False),
    ({"email": "x@example.com.evil.example", "email_verified": True}, False),
    ({"email": ["carl@example.org"], "email_verified": True}, False),
    ({"groups": ["carl@example.org", "@example.com", "WRITERS", 7, None]}, False),
    ({"name": "writers", "preferred_username": "carl@example.org"}, False),
    ({}, False),
]


@pytest.mark.parametrize(("claims", "may"), PEOPLE)
@on_one_database
def test_only_those_whom_the_operator_allows_sign_in(
    team: Callable[..., Site], provider: Provider, claims: Claims, may: bool
) -> None:
    browser = team(TEXTMILL_OIDC_ALLOWED=ALLOWED).app.test_client()
    provider.person |= claims
    answer = sign_in(browser)
    if may:
        assert answer.status_code == 303
        assert is_signed_in(browser)
    else:
        assert "has not allowed your account" in refused(browser, answer, 403)


ADMIN_CLAIMS: list[tuple[Claims, bool]] = [
    (VERIFIED, True),
    ({"sub": "ops-7"}, True),
    ({"email": "anna@example.org", "email_verified": False}, False),
    ({"email": "anna@example.org"}, False),
    ({"sub": "anna@example.org"}, False),  # a provider whose people choose their names
    ({"name": "ops-7", "groups": ["ops-7"]}, False),
]


@pytest.mark.parametrize(("claims", "is_admin"), ADMIN_CLAIMS)
@on_one_database
def test_admins_are_named_by_verified_email_or_by_subject(
    team: Callable[..., Site], provider: Provider, claims: Claims, is_admin: bool
) -> None:
    admins = "anna@example.org,ops-7"
    browser = team(TEXTMILL_OIDC_ADMINS=admins).app.test_client()
    provider.person |= claims
    assert sign_in(browser).status_code == 303
    assert browser.get("/admin", base_url=BASE).status_code == (200 if is_admin else 403)


def test_other_rules_end_all_sessions(team: Callable[..., Site], provider: Provider) -> None:
    browser = team(**ADMINS).app.test_client()
    provider.person |= VERIFIED
    sign_in(browser)
    cookie = browser.get_cookie(SESSION, domain=HOST)
    assert cookie is not None
    header = {"Cookie": f"{SESSION}={cookie.value}"}
    for settings, status in ((ADMINS, 200), ({}, 303), ({"TEXTMILL_OIDC_ALLOWED": "x"}, 303)):
        other = team(**settings).app.test_client(use_cookies=False)
        assert other.get("/admin", headers=header).status_code == status


# ---- wrong answers --------------------------------------------------------------------------


def with_claims(**changes: Any) -> Callable[[Claims], Claims]:
    def change(claims: Claims) -> Claims:
        found = {**claims, **changes}
        return {name: value for name, value in found.items() if value is not None}

    return change


WRONG = {
    "wrong nonce": with_claims(nonce="x"),
    "no nonce": with_claims(nonce=None),
    "wrong audience": with_claims(aud="another-client"),
    "no audience": with_claims(aud=None),
    "empty audience": with_claims(aud=[]),
    "several audiences without azp": with_claims(aud=[CLIENT_ID, "another-client"]),
    "azp of another client": with_claims(aud=[CLIENT_ID, "x"], azp="another-client"),
    "azp of another client alone": with_claims(azp="another-client"),
    "wrong issuer": with_claims(iss="https://evil.example"),
    "issuer with a slash": lambda claims: {**claims, "iss": f"{claims['iss']}/"},
    "no issuer": with_claims(iss=None),
    "expired": lambda claims: {**claims, "exp": int(time.time()) - LONG_AGO},
    "no expiry": with_claims(exp=None),
    "expiry that is no number": with_claims(exp="tomorrow"),
    "from the future": lambda claims: {**claims, "iat": int(time.time()) + LONG_AGO},
    "not yet valid": lambda claims: {**claims, "nbf": int(time.time()) + LONG_AGO},
    "no subject": with_claims(sub=None),
    "hash of another access token": with_claims(at_hash="x" * 22),
}


@pytest.mark.parametrize("name", sorted(WRONG))
@on_one_database
def test_an_identity_token_that_is_not_for_this_sign_in_is_refused(
    team: Callable[..., Site], provider: Provider, name: str
) -> None:
    browser = team().app.test_client()
    provider.change = WRONG[name]
    page = refused(browser, sign_in(browser), 403)
    assert "not valid for this service" in page.replace("\n", " ")


@pytest.mark.parametrize(
    "subject", ["", " ", 7, ["x"], "x" * 256, "\u00e9", "a\nb"], ids=lambda s: ascii(s)[:12]
)
@on_one_database
def test_a_subject_that_cannot_be_one_is_refused(
    team: Callable[..., Site], provider: Provider, subject: object
) -> None:
    browser = team().app.test_client()
    provider.person = {"sub": subject}
    answer = sign_in(browser)
    refused(browser, answer, answer.status_code)
    assert answer.status_code in (403, 503)


def encoded(part: Claims) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(claims: Claims) -> str:
    return f"{encoded({'alg': 'none'})}.{encoded(claims)}."


def hashed_with(key: str) -> Callable[[Claims], str]:
    def sign(claims: Claims) -> str:
        text = ".".join((encoded({"alg": "HS256"}), encoded(claims)))
        found = hmac.digest(key.encode(), text.encode(), "sha256")
        return f"{text}.{base64.urlsafe_b64encode(found).rstrip(b'=').decode()}"

    return sign


def under_the_name_of_the_key(provider: Provider) -> Callable[[Claims], str]:
    header, other = {"alg": "RS256", "kid": provider.keys[0].kid}, new_key()
    return lambda claims: jwt.encode(header, claims, other)


def changed_afterwards(provider: Provider) -> Callable[[Claims], str]:
    def sign(claims: Claims) -> str:
        header, _, signature = provider.signed(claims).split(".")
        return f"{header}.{encoded({**claims, 'sub': 'ops'})}.{signature}"

    return sign


ALGORITHM, SIGNATURE = "unsupported_algorithm", "bad_signature"
FORGED: dict[str, tuple[Callable[[Provider], Callable[[Claims], str]], str]] = {
    "alg none": (lambda _: unsigned, ALGORITHM),
    "HS256 with the public key": (
        lambda p: hashed_with(p.keys[0].as_pem(private=False).decode()),
        ALGORITHM,
    ),
    "HS256 with the client's secret": (lambda _: hashed_with(CLIENT_SECRET), ALGORITHM),
    "another key": (lambda p: lambda claims: p.signed(claims, new_key()), "invalid_key_id"),
    "another key under the same name": (under_the_name_of_the_key, SIGNATURE),
    "changed after it was signed": (changed_afterwards, SIGNATURE),
    "no token": (lambda _: lambda _: "", ""),
    "no dots": (lambda _: lambda _: "x", ""),
    "no base64": (lambda _: lambda _: "é.é.é", ""),
}


@pytest.mark.parametrize("name", sorted(FORGED))
@on_one_database
def test_an_identity_token_that_the_provider_did_not_sign_is_refused(
    team: Callable[..., Site], provider: Provider, name: str
) -> None:
    browser = team().app.test_client()
    forge, reason = FORGED[name]
    provider.sign = forge(provider)
    with capture_logs() as logs:
        refused(browser, sign_in(browser), 403)
    assert f"identity token: {reason}" in str(logs)


@on_one_database
def test_the_provider_may_change_its_key_at_any_time(
    team: Callable[..., Site], provider: Provider
) -> None:
    site, old = team(), provider.keys[0]
    assert sign_in(site.app.test_client()).status_code == 303
    provider.keys = [new_key(), old]
    assert sign_in(site.app.test_client()).status_code == 303
    provider.keys = [new_key()]
    assert sign_in(site.app.test_client()).status_code == 303
    provider.sign = lambda claims: provider.signed(claims, old)  # withdrawn
    refused(browser := site.app.test_client(), sign_in(browser), 403)
    provider.keys = [old]


# ---- answers of other sign-ins --------------------------------------------------------------


def test_an_answer_counts_once(team: Callable[..., Site], provider: Provider) -> None:
    browser = team().app.test_client()
    begun = begin(browser)
    kept = browser.get_cookie(ATTEMPT, domain=HOST)
    assert kept is not None
    back = pressed(begun.location)
    assert browser.get(back, base_url=BASE).status_code == 303
    browser.post("/sign-out", base_url=BASE)
    refused(browser, browser.get(back, base_url=BASE), 400)
    browser.set_cookie(ATTEMPT, kept.value, domain=HOST, path="/", secure=True)
    refused(browser, browser.get(back, base_url=BASE), 403)  # the provider takes the code once


def test_an_answer_to_another_browser_signs_nobody_in(
    team: Callable[..., Site], provider: Provider
) -> None:
    site = team()
    attacker, victim, stranger = (site.app.test_client() for _ in range(3))
    back = pressed(begin(attacker).location)
    begin(victim)
    assert "begun in this browser" in refused(victim, victim.get(back, base_url=BASE), 400)
    refused(stranger, stranger.get(back, base_url=BASE), 400)
    assert "/token" not in provider.asked


@pytest.mark.parametrize("change", ["state", "no state", "shorter", "cookie", "issuer"])
@on_one_database
def test_a_changed_answer_is_refused(
    team: Callable[..., Site], provider: Provider, change: str
) -> None:
    browser = team().app.test_client()
    back = pressed(begin(browser).location)
    state = parse_qs(urlsplit(back).query)["state"][0]
    if change == "cookie":
        cookie = browser.get_cookie(ATTEMPT, domain=HOST)
        assert cookie is not None
        browser.set_cookie(ATTEMPT, cookie.value[:-1], domain=HOST, path="/", secure=True)
    back = {
        "state": back.replace(state, "\u00e9" + state[1:]),
        "no state": back.replace(f"state={state}", ""),
        "shorter": back.replace(state, state[:-1]),
        "cookie": back,
        "issuer": back[: back.index("&iss=")] + "&iss=https://evil.example",
    }[change]
    refused(browser, browser.get(back, base_url=BASE), 400)
    assert "/token" not in provider.asked


@on_one_database
def test_a_sign_in_ends_after_ten_minutes(
    team: Callable[..., Site], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = team().app.test_client()
    back = pressed(begin(browser).location)
    now = time.time()
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now + ATTEMPT_SECONDS + 2)
    refused(browser, browser.get(back, base_url=BASE), 400)


@on_one_database
def test_a_session_ends_after_twelve_hours(
    team: Callable[..., Site], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = team().app.test_client()
    sign_in(browser)
    cookie = browser.get_cookie(SESSION, domain=HOST)
    assert cookie is not None
    now, header = time.time(), {"Cookie": f"{SESSION}={cookie.value}"}
    plain = browser.application.test_client(use_cookies=False)
    for hours, status in ((11.9, 200), (12.1, 303)):
        later = now + hours * 3_600
        monkeypatch.setattr("itsdangerous.timed.time.time", lambda later=later: later)
        assert plain.get("/history", headers=header).status_code == status


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("error=access_denied", "denied access"),
        ("error=server_error&error_description=Call+0800", "(server_error)"),
        ("error=<script>not shown</script>", "(unknown)"),
        ("error=" + "x" * 10_000, "(unknown)"),
        ("error=", "(unknown)"),
        ("", "no code"),
        ("code=", "no code"),
        ("code=" + "x" * 10_000, "no code"),
    ],
)
@on_one_database
def test_an_error_of_the_provider_is_told_in_our_words(
    team: Callable[..., Site], provider: Provider, query: str, words: str
) -> None:
    browser = team().app.test_client()
    state = parse_qs(urlsplit(begin(browser).location).query)["state"][0]
    answer = browser.get(f"/sign-in/sso/callback?state={state}&{query}", base_url=BASE)
    page = refused(browser, answer, 403)
    assert words in page
    assert "0800" not in page
    assert "x" * 100 not in page
    assert browser.get_cookie(ATTEMPT, domain=HOST) is None


# ---- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ELSEWHERE)
@on_one_database
def test_a_single_sign_on_leads_to_no_other_site(
    team: Callable[..., Site], provider: Provider, address: str
) -> None:
    assert sign_in(team().app.test_client(), address).headers["Location"] == "/"


@on_one_database
def test_the_provider_sends_nobody_to_a_host_that_is_not_ours(
    team: Callable[..., Site], provider: Provider
) -> None:
    browser = team().app.test_client(use_cookies=False)
    for host in ("evil.example", f"{HOST}@evil.example", f"{HOST}.evil.example"):
        answer = browser.get("/sign-in/sso", headers={"Host": host})
        assert answer.status_code == 421
        assert "Location" not in answer.headers
    nameless = browser.get("/sign-in/sso", headers={"Host": ""})
    assert nameless.status_code == 421
    for base, host, expected in (
        ("https://x", f"{HOST.upper()}.:443", BASE),
        ("http://x", f"{HOST}:8080", f"http://{HOST}:8080"),
        ("http://x", "[::1]:8000", "http://[::1]:8000"),
    ):
        answer = browser.get("/sign-in/sso", base_url=base, headers={"Host": host})
        (given,) = parse_qs(urlsplit(answer.headers["Location"]).query)["redirect_uri"]
        assert given == f"{expected}/sign-in/sso/callback"
    forwarded = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    answer = browser.get("/sign-in/sso", base_url=BASE, headers=forwarded)
    assert "evil.example" not in answer.headers["Location"]


# ---- a provider that fails ------------------------------------------------------------------


def redirecting() -> Response:
    return Response("", 307, {"Location": "http://127.0.0.1:9/token"})


def long() -> Response:
    return Response(b"x" * (MAX_ANSWER_BYTES + 1), content_type="application/json")


ANSWERS: dict[str, Callable[[], Response]] = {
    "redirects": redirecting,
    "fails": lambda: Response("<script>not shown</script>", 500),
    "is gone": lambda: Response("", 404),
    "is empty": lambda: Response("", 200),
    "is no JSON": lambda: Response("<html>", 200),
    "is no object": lambda: Response("[]", 200, content_type="application/json"),
    "has nothing": lambda: Response("{}", 200, content_type="application/json"),
    "is nested": lambda: Response("[" * 100_000, 200, content_type="application/json"),
    "is long": long,
}
PLACES = ("/.well-known/openid-configuration", "/token", "/jwks", "/userinfo")


@pytest.mark.parametrize("name", sorted(ANSWERS))
@pytest.mark.parametrize("place", PLACES)
@on_one_database
def test_a_provider_that_answers_wrongly_leaves_the_way_by_key(
    team: Callable[..., Site], provider: Provider, place: str, name: str
) -> None:
    browser = team().app.test_client()
    provider.answers[place] = ANSWERS[name]
    if place == PLACES[0]:
        answer = begin(browser)
    else:
        answer = browser.get(pressed(begin(browser).location), base_url=BASE)
    page = refused(browser, answer, answer.status_code)
    assert answer.status_code in (403, 503)
    assert "the single sign-on" in page
    if answer.status_code == 503:
        assert int(answer.headers["Retry-After"]) > 0
        assert "sign in with an API key" in page.replace("\n", " ")


METADATA: list[Claims] = [
    {"issuer": "https://evil.example"},
    {"token_endpoint": "http://evil.example/token"},
    {"authorization_endpoint": "http://evil.example/authorize"},
    {"authorization_endpoint": "javascript:alert(1)"},
    {"jwks_uri": 7},
    {"jwks_uri": "file:///etc/passwd"},
    {"userinfo_endpoint": "ftp://evil.example"},
    {"token_endpoint_auth_methods_supported": ["none", "private_key_jwt"]},
]


@pytest.mark.parametrize("metadata", METADATA, ids=str)
@on_one_database
def test_a_discovery_document_that_cannot_be_trusted_is_refused(
    team: Callable[..., Site], provider: Provider, metadata: Claims
) -> None:
    browser = team().app.test_client()
    provider.metadata = metadata
    refused(browser, begin(browser), 503)


@on_one_database
def test_keys_of_kinds_that_are_unknown_here_do_no_harm(
    team: Callable[..., Site], provider: Provider
) -> None:
    own = provider.keys[0].as_dict(private=False)
    further = [
        {"kty": "new", "kid": "1"},
        {"kty": "EC", "crv": "new", "x": "AA", "y": "AA", "kid": "2"},
        {"kty": "oct", "k": "AAAA", "kid": "3"},
    ]
    document = json.dumps({"keys": [*further, own]})
    provider.answers["/jwks"] = lambda: Response(document, content_type="application/json")
    assert sign_in(team().app.test_client()).status_code == 303


@on_one_database
def test_a_provider_that_is_down_leaves_the_way_by_key_and_is_asked_again(
    team: Callable[..., Site], provider: Provider
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        issuer = f"http://127.0.0.1:{closed.getsockname()[1]}"
    browser = team(TEXTMILL_OIDC_ISSUER=issuer).app.test_client()
    with capture_logs() as logs:
        refused(browser, begin(browser), 503)
    assert {
        "event": "provider_unusable",
        "reason": "ConnectionError",
        "log_level": "warning",
    } in logs
    site = team()
    provider.answers[PLACES[0]] = ANSWERS["fails"]
    refused(browser := site.app.test_client(), begin(browser), 503)
    provider.answers.clear()
    assert sign_in(browser).status_code == 303


@pytest.fixture
def dripping() -> Iterator[str]:
    """The address of a server that sends its header a byte at a time and never ends it."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not stop.wait(0.2):
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        thread.join()


@on_one_database
def test_a_provider_that_is_slow_is_given_up_after_five_seconds(
    team: Callable[..., Site], dripping: str
) -> None:
    browser = team(TEXTMILL_OIDC_ISSUER=dripping).app.test_client()
    started = time.monotonic()
    refused(browser, begin(browser), 503)
    assert time.monotonic() - started < STEP_SECONDS + 1


@on_one_database
def test_the_log_says_why_and_contains_no_secret(
    team: Callable[..., Site], provider: Provider
) -> None:
    browser = team(TEXTMILL_OIDC_CLIENT_SECRET="x" * 8).app.test_client()
    with capture_logs() as logs:
        refused(browser, sign_in(browser), 403)
        refused(browser := team().app.test_client(), begin_and_fail(browser, provider), 403)
    reasons = {line["reason"] for line in logs if line["event"] == "sign_in_failed"}
    assert reasons == {
        "the token endpoint answers invalid_client",
        "identity token: invalid_claim (nonce)",
    }
    for secret in (CLIENT_SECRET, "x" * 8, "code=", "anna"):
        assert secret not in str(logs)


def begin_and_fail(browser: FlaskClient, provider: Provider) -> TestResponse:
    provider.change = with_claims(nonce="x")
    return sign_in(browser)


# ---- what an admin does ---------------------------------------------------------------------


def test_an_admin_disables_and_blocks_people_at_once(
    team: Callable[..., Site], provider: Provider
) -> None:
    site = team(**ADMINS)
    ops, carl, elsewhere = (site.app.test_client() for _ in range(3))
    provider.person |= VERIFIED
    sign_in(ops)
    provider.person = {"sub": "carl-2", "name": "Carl <b>"}
    sign_in(carl)
    sign_in(elsewhere)
    carl.post(JOBS, json=BODY, base_url=BASE)
    page = ops.get("/admin", base_url=BASE).text
    carl_id = user_id(provider.issuer, "carl-2")
    assert page.count("Carl &lt;b&gt;") == 2  # among the people and among the owners
    ops.post("/admin/block", data={"subject": f"user:{carl_id}"}, base_url=BASE)
    assert carl.post(JOBS, json=BODY, base_url=BASE).status_code == 403
    assert is_signed_in(carl)
    ops.post("/admin/unblock", data={"subject": f"user:{carl_id}"}, base_url=BASE)
    assert carl.post(JOBS, json=BODY, base_url=BASE).status_code == 202
    ops.post("/admin/disable", data={"user": carl_id}, base_url=BASE)
    assert not is_signed_in(carl)
    assert not is_signed_in(elsewhere)
    assert carl.post(JOBS, json=BODY, base_url=BASE).status_code == 401
    assert "has disabled your account" in refused(carl, sign_in(carl), 403)
    ops.post("/admin/enable", data={"user": carl_id}, base_url=BASE)
    assert not is_signed_in(elsewhere)  # an old session does not come back
    assert sign_in(carl).status_code == 303
    audited = ops.get("/admin", base_url=BASE).text
    assert "user_disable" in audited
    assert "user_enable" in audited
    assert is_signed_in(ops)


def test_signing_out_ends_the_session_also_for_a_copy_of_its_cookie(
    team: Callable[..., Site], provider: Provider
) -> None:
    browser = team().app.test_client()
    sign_in(browser)
    cookie = browser.get_cookie(SESSION, domain=HOST)
    assert cookie is not None
    header = {"Cookie": f"{SESSION}={cookie.value}"}
    plain = browser.application.test_client(use_cookies=False)
    assert plain.get("/history", headers=header).status_code == 200
    browser.post("/sign-out", base_url=BASE)
    assert plain.get("/history", headers=header).status_code == 303


def test_people_have_the_budgets_of_keys(team: Callable[..., Site], provider: Provider) -> None:
    site = team(TEXTMILL_KEY_MAX_QUEUED="2")
    anna, carl = site.app.test_client(), site.app.test_client()
    sign_in(anna)
    provider.person = {"sub": "carl-2"}
    sign_in(carl)
    statuses = [anna.post(JOBS, json=BODY, base_url=BASE).status_code for _ in range(3)]
    assert statuses == [202, 202, 429]
    assert carl.post(JOBS, json=BODY, base_url=BASE).status_code == 202


@on_one_database
def test_without_the_packages_the_start_stops_and_names_the_extra(
    team: Callable[..., Site],
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(
        "textmill.core.oidc_settings.find_spec", lambda name: None if name == "authlib" else name
    )
    sentence = r"authlib.*pip install 'textmill\[oidc\]'"
    with pytest.raises(SettingsError, match=sentence):
        team()
    settings = {"TEXTMILL_ACCESS": "team", "TEXTMILL_ALLOWED_HOSTS": HOST, **provider.settings()}
    environment = {**settings, "TEXTMILL_HOME": str(tmp_path / "not-made")}
    with pytest.raises(SettingsError, match=sentence):
        run_up(Settings.from_environment(environment), environment)
    assert not (tmp_path / "not-made").exists()


def test_without_single_sign_on_its_packages_are_not_imported(tmp_path: Path) -> None:
    code = """
import sys
from textmill.backend.app import create_app
from textmill.core.settings import Settings
create_app(Settings.from_environment(dict(
    TEXTMILL_HOME=sys.argv[1], TEXTMILL_ACCESS="team", TEXTMILL_ALLOWED_HOSTS="a.example.org")))
print(sorted({"authlib", "joserfc", "requests"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_demo_has_single_sign_on_beside_its_visitors(
    team: Callable[..., Site], provider: Provider
) -> None:
    browser = team(TEXTMILL_ACCESS="demo").app.test_client()
    visitors = browser.post(JOBS, json=BODY, base_url=BASE).get_json()["links"]["self"]
    assert sign_in(browser).status_code == 303
    assert browser.get(visitors, base_url=BASE).status_code == 404
    browser.post("/sign-out", base_url=BASE)
    assert browser.get(visitors, base_url=BASE).status_code == 200


@on_one_database
def test_without_single_sign_on_there_is_no_way_to_it(make_site: Sites) -> None:
    site = make_site(TEXTMILL_ACCESS="team", TEXTMILL_ALLOWED_HOSTS=HOST)
    for path in ("/sign-in/sso", "/sign-in/sso/callback?code=x&state=y"):
        assert site.client.get(path).status_code == 404
    assert "single sign-on" not in site.client.get("/sign-in").text
