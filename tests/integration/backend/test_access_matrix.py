"""Every address with every kind of client, in the modes demo and team, and with single sign-on.

A new route without a row fails ``test_every_route_has_a_row``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import Response
from flask.testing import FlaskClient
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites
from tests.oidc_provider import Provider
from textmill.backend.access.control import EXTENSION
from textmill.backend.access.policy import NEEDS, PUBLIC
from textmill.backend.access.visitors import HEADER
from textmill.backend.api_paths import is_api as is_api_path
from textmill.core.access.audit import latest
from textmill.core.access.identities import identity_of, user_id
from textmill.core.access.keys import KeyStore
from textmill.core.access.principals import ADMIN, LOCAL, READ, SUBMIT
from textmill.core.access.users import UserStore
from textmill.core.database.access_tables import ApiKey, Share
from textmill.core.database.connections import reading, writing
from textmill.core.database.maintenance import Upkeep
from textmill.core.database.tables import Job, JobEvent
from textmill.core.jobs import pages
from textmill.core.jobs.retention import BATCH_JOBS, expire

MARK = "wombat"  # in the prompt of the owner's job, and nowhere else
NO_USER = {"data": {"user": "x"}}
BODY = {"prompt": "another", "model": "tiny"}
FORM = {
    "prompt": "another",
    "model": "tiny",
    "strategy": "greedy",
    "greedy.repetition_penalty": "1",
    "samples": "1",
    "max_new_tokens": "4",
    "seed": "",
    "stop": "",
}


@dataclass(frozen=True)
class Row:
    """One route, and how to call it.

    Attributes:
        path: with {job} and {run}, those of the owner.
        concerns: ``job`` or ``run`` if it shows or changes one, else empty.
        state: of the job.
        options: further arguments of the test client.
        status: of the owner's request.
    """

    method: str
    path: str
    concerns: str = ""
    state: str = "ended"
    options: dict[str, Any] = field(default_factory=dict)
    status: int = 200


ROWS = {
    "static": Row("GET", "/static/icon.svg"),
    "health.alive": Row("GET", "/healthz"),
    "health.ready": Row("GET", "/readyz"),
    "health.metrics": Row("GET", "/metrics"),
    "api.schema.openapi": Row("GET", "/api/v1/openapi.json"),
    "api.jobs.submit": Row("POST", JOBS, options={"json": BODY}, status=202),
    "api.jobs.read": Row("GET", JOBS + "/{job}", "job"),
    "api.jobs.cancel": Row("POST", JOBS + "/{job}/cancel", "job", "queued", status=202),
    "api.jobs.delete": Row("DELETE", JOBS + "/{job}", "job", status=204),
    "api.jobs.star": Row("POST", JOBS + "/{job}/star", "job"),
    "api.jobs.unstar": Row("DELETE", JOBS + "/{job}/star", "job"),
    "api.jobs.trace": Row("GET", JOBS + "/{job}/trace", "job"),
    "api.jobs.index": Row("GET", JOBS),
    "api.jobs.export": Row("GET", JOBS + "/export?format=jsonl"),
    "api.events.of_job": Row("GET", JOBS + "/{job}/events", "job"),
    "api.events.of_run": Row("GET", RUNS + "/{run}/events", "run"),
    "api.runs.submit": Row(
        "POST", RUNS, options={"json": {"prompt": "x", "variants": [{}]}}, status=202
    ),
    "api.runs.read": Row("GET", RUNS + "/{run}", "run"),
    "api.models.models": Row("GET", "/api/v1/models"),
    "api.models.strategies": Row("GET", "/api/v1/strategies"),
    "api.models.tokenize": Row("POST", "/api/v1/tokenize", options={"json": {"text": "a quick"}}),
    "api.queue.queue": Row("GET", "/api/v1/queue"),
    # A good request would wait for its text.
    "openai.completions.create": Row(
        "POST", "/v1/completions", options={"json": {"prompt": []}}, status=400
    ),
    "openai.chat.create": Row(
        "POST", "/v1/chat/completions", options={"json": {"messages": []}}, status=400
    ),
    "openai.responses.create": Row(
        "POST", "/v1/responses", options={"json": {"input": "another", "background": True}}
    ),
    "openai.responses.read": Row("GET", "/v1/responses/resp_{job}", "job"),
    "openai.responses.cancel": Row("POST", "/v1/responses/resp_{job}/cancel", "job", "queued"),
    "openai.responses.delete": Row("DELETE", "/v1/responses/resp_{job}", "job"),
    "openai.models.index": Row("GET", "/v1/models"),
    "openai.models.read": Row("GET", "/v1/models/tiny"),
    "openai_helpers.tokenizer_info": Row("GET", "/tokenizer_info"),
    "openai_helpers.tokenize": Row("POST", "/tokenize", options={"json": {"prompt": "a quick"}}),
    "openai_helpers.detokenize": Row("POST", "/detokenize", options={"json": {"tokens": [1, 2]}}),
    "pages.docs.docs_page": Row("GET", "/docs"),
    "pages.generate.generate_page": Row("GET", "/"),
    "pages.generate.generate": Row("POST", "/generate", options={"data": FORM}, status=303),
    "pages.generate.generate_again": Row("GET", "/generate", status=303),
    "pages.history.history_page": Row("GET", "/history"),
    "pages.history.delete_selected": Row(
        "POST", "/history/delete", options={"data": {"id": "{job}"}}, status=303
    ),
    "pages.job.job_page": Row("GET", "/jobs/{job}", "job"),
    "pages.job.cancel": Row("POST", "/jobs/{job}/cancel", "job", "queued", status=303),
    "pages.job.delete": Row("POST", "/jobs/{job}/delete", "job", status=303),
    "pages.job.star": Row("POST", "/jobs/{job}/star", "job", status=303),
    "pages.job.unstar": Row("POST", "/jobs/{job}/unstar", "job", status=303),
    "pages.job.again": Row("POST", "/jobs/{job}/again", "job", status=303),
    "pages.run.run_page": Row("GET", "/runs/{run}", "run"),
    "pages.run.compare_page": Row("GET", "/compare?id={job}", "job"),
    "pages.run.cancel_run": Row("POST", "/runs/{run}/cancel", "run", status=303),
    "pages.run.run_again": Row("POST", "/runs/{run}/again", "run", status=303),
    "pages.models.models_page": Row("GET", "/models"),
    "pages.models.model_card_page": Row("GET", "/models/tiny/card", status=404),
    "pages.models.curve": Row("GET", "/models/tiny/loss.svg", status=404),
    "pages.queue.queue_page": Row("GET", "/queue"),
    "pages.sign_in.sign_in_page": Row("GET", "/sign-in"),
    "pages.sign_in.sign_in": Row("POST", "/sign-in", options={"data": {"key": "x"}}, status=401),
    "pages.sign_in.sign_out": Row("POST", "/sign-out", status=303),
    "pages.sign_in.forget_me": Row("POST", "/forget-me"),
    "pages.sign_in.begin_single_sign_on": Row("GET", "/sign-in/sso", status=303),
    "pages.sign_in.finish_single_sign_on": Row("GET", "/sign-in/sso/callback?code=x", status=400),
    "pages.sign_in.robots": Row("GET", "/robots.txt"),
    "pages.admin.admin_page": Row("GET", "/admin"),
    "pages.admin.revoke": Row("POST", "/admin/revoke", options={"data": {"key": "x"}}, status=404),
    "pages.admin.block": Row(
        "POST", "/admin/block", options={"data": {"subject": "visitor:x1"}}, status=303
    ),
    "pages.admin.unblock": Row(
        "POST", "/admin/unblock", options={"data": {"subject": "visitor:x1"}}, status=303
    ),
    "pages.admin.disable": Row("POST", "/admin/disable", options=NO_USER, status=404),
    "pages.admin.enable": Row("POST", "/admin/enable", options=NO_USER, status=404),
    "pages.admin.delete": Row(
        "POST", "/admin/delete", options={"data": {"job": "{job}", "reason": "spam"}}, status=303
    ),
    "api.shares.share_job": Row("POST", JOBS + "/{job}/share", "job", options={"json": {}}),
    "api.shares.unshare_job": Row("DELETE", JOBS + "/{job}/share", "job", status=204),
    "api.shares.share_run": Row("POST", RUNS + "/{run}/share", "run", options={"json": {}}),
    "api.shares.unshare_run": Row("DELETE", RUNS + "/{run}/share", "run", status=204),
    "pages.shared.shared_page": Row("GET", "/shared/x", status=404),
    "pages.shared.share_job": Row("POST", "/jobs/{job}/share", "job", status=303),
    "pages.shared.unshare_job": Row("POST", "/jobs/{job}/unshare", "job", status=303),
    "pages.shared.share_run": Row("POST", "/runs/{run}/share", "run", status=303),
    "pages.shared.unshare_run": Row("POST", "/runs/{run}/unshare", "run", status=303),
}
ISSUER = "https://login.example.org"  # of the people here; nobody asks it
ONLY_VISITORS = {"pages.sign_in.forget_me"}
Headers = dict[str, str]


class Place:
    """A site in one mode, with its owner and the credentials of the others.

    Args:
        site: in the mode demo or team, with single sign-on.
        mode: that mode.
        owners: what the owner and another client are: ``visitor``, ``key`` or ``user``.
    """

    def __init__(self, site: Site, mode: str, owners: str) -> None:
        self.site, self.mode, self.owners = site, mode, owners
        self.keys = KeyStore(site.services.store.engine)
        self.signed_in, self.signed_in_admin = self._user("carl"), self._user("ops", is_admin=True)
        self.disabled = self._user("gone", is_admin=True)
        UserStore(site.services.store.engine).disable(user_id(ISSUER, "gone"), LOCAL)
        if owners == "visitor":
            self.owner, self.another = self._visitor(), self._visitor()
        elif owners == "user":
            self.owner, self.another = self._user("own"), self._user("oth")
        else:
            self.owner, self.another = (
                self._key("own", READ, SUBMIT),
                self._key("oth", READ, SUBMIT),
            )
        self.reader = self._key("reader", READ)
        self.admin = self._key("admin", ADMIN)
        self.team = bearer(self.keys.create("team", [READ, SUBMIT], sees_all=True)[1])
        self.expired = self._key("expired", READ, SUBMIT, ADMIN)
        with writing(site.services.store.engine) as connection:
            old = update(ApiKey).where(ApiKey.name == "expired").values(expires_at=1)
            connection.execute(old)
        self.revoked = self._key("revoked", READ, SUBMIT, ADMIN)
        self.keys.revoke("revoked")

    def _visitor(self) -> Headers:
        return {HEADER: self.client.get(JOBS).headers[HEADER]}

    def _user(self, subject: str, *, is_admin: bool = False) -> Headers:
        """The cookie of a person who has signed in; test_single_sign_on goes the whole way."""
        sign_on = self.site.app.extensions[EXTENSION].sign_on
        identity = identity_of(ISSUER, {"sub": subject})
        user = UserStore(self.site.services.store.engine).sign_in(identity, is_admin=is_admin)
        with self.site.app.test_request_context() as context:
            sign_on.remember(context.request, response := Response(), user)
        return {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}

    def _key(self, name: str, *scopes: str) -> Headers:
        return bearer(self.keys.create(name, scopes)[1])

    @property
    def client(self) -> FlaskClient:
        """A client without cookies."""
        return self.site.app.test_client(use_cookies=False)

    def stored(self, row: Row) -> dict[str, str]:
        """A new job and run of the owner, in the state that a row needs."""
        body = {"prompt": MARK, "variants": [{}], "trace": True}
        answer = self.client.post(RUNS, json=body, headers=self.owner)
        assert answer.status_code == 202, answer.text
        run = answer.get_json()
        if row.state == "ended":
            claimed = self.site.claim()
            while claimed.id != run["jobs"][0]["id"]:  # those that the clients submitted
                self.site.finish(claimed)
                claimed = self.site.claim()
            self.site.finish(claimed, f" {MARK}", trace=[])
        return {"job": run["jobs"][0]["id"], "run": run["id"]}

    def call(self, row: Row, ids: dict[str, str], headers: Headers) -> TestResponse:
        options: Any = {
            name: {key: str(value).format(**ids) for key, value in given.items()}
            if name == "data"
            else given
            for name, given in row.options.items()
        }
        return self.client.open(
            row.path.format(**ids), method=row.method, headers=headers, **options
        )


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


PLACES = {
    "demo": ("demo", "visitor"),
    "team": ("team", "key"),
    "single sign-on": ("team", "user"),
}


@pytest.fixture(params=list(PLACES))
def place(request: pytest.FixtureRequest, make_site: Sites, provider: Provider) -> Place:
    mode, owners = PLACES[request.param]
    settings: Any = {
        "TEXTMILL_ACCESS": mode,
        "TEXTMILL_ALLOWED_HOSTS": "demo.example.org",
        "TEXTMILL_VISITOR_MAX_QUEUED": "16",  # the owner's, one for each client
        **provider.settings(),
    }
    site = make_site(**settings)
    site.beat()
    return Place(site, mode, owners)


def test_every_route_has_a_row(make_site: Sites) -> None:
    endpoints = {rule.endpoint for rule in make_site().app.url_map.iter_rules()}
    assert endpoints == set(ROWS) == set(NEEDS)


def expected(name: str, row: Row, who: str, mode: str) -> set[int]:
    """The statuses that a client may get; pages redirect to the form where a key is missing."""
    needed, is_api = NEEDS[name], is_api_path(row.path) or row.path == "/metrics"
    if needed == PUBLIC:
        return {row.status}
    needs_key = {401} if is_api or row.method != "GET" else {303}
    if who in ("expired", "revoked"):
        return needs_key
    if who in ("nobody", "disabled") and mode == "team":
        return needs_key
    if needed == ADMIN:
        return {row.status} if who in ADMINS else needs_key | {403}
    if who == "reader" and needed == SUBMIT:
        return {403}
    if name in ONLY_VISITORS:
        is_visitor = mode == "demo" and who in ("owner", "another", "nobody", "disabled")
        return {row.status} if is_visitor else {409}
    if who == "owner" or who in ADMINS or not row.concerns:
        return {row.status}
    if who == "team" and (needed == READ or name in ("pages.run.run_again", "pages.job.again")):
        return {row.status}
    if who == "team" and name == "pages.run.cancel_run":  # what it may not cancel stays
        return {row.status}
    return {404}


ADMINS = ("admin", "signed_in_admin")
WHO = (
    "owner",
    "another",
    "nobody",
    "reader",
    "team",
    "expired",
    "revoked",
    "signed_in",
    "disabled",
    *ADMINS,
)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_client_gets_what_it_may_and_the_rest_does_not_exist(place: Place, name: str) -> None:
    row = ROWS[name]
    for who in WHO:
        ids = place.stored(row)
        answer = place.call(row, ids, {} if who == "nobody" else getattr(place, who))
        answer.get_data()
        answer.close()
        if name == "pages.sign_in.sign_out" and (who, place.owners) == ("owner", "user"):
            place.owner = place._user("own")  # all of its sessions have ended
        assert answer.status_code in expected(name, row, who, place.mode), (who, answer.text[:300])
        sees = who in ("owner", *ADMINS) or (who == "team" and NEEDS[name] == READ)
        if not sees and name != "pages.job.again" and name != "pages.run.run_again":
            assert MARK not in answer.text, who
        kept = place.client.get(f"{JOBS}/{ids['job']}", headers=place.owner)
        if who not in ("owner", *ADMINS) and name != "pages.sign_in.forget_me":
            assert kept.status_code == 200, who
            assert kept.get_json()["status"] == ("succeeded" if row.state == "ended" else "queued")


@pytest.mark.parametrize("path", [JOBS, JOBS + "?q=wombat", "/history", "/history?q=wombat"])
def test_lists_and_searches_show_ones_own(place: Place, path: str) -> None:
    place.stored(ROWS["api.jobs.index"])
    shown = {}
    for who in ("owner", "another", "reader", "team", "admin", "signed_in", "signed_in_admin"):
        text = place.client.get(path, headers=getattr(place, who)).text
        shown[who] = MARK in text.replace("q=wombat", "").replace('value="wombat"', "")
    assert shown == {
        "owner": True, "another": False, "reader": False, "team": True, "admin": True,
        "signed_in": False, "signed_in_admin": True,
    }  # fmt: skip


def test_host_names_and_process_ids_are_for_admins(place: Place) -> None:
    place.site.beat(id="secrethost:4711")
    for path in ("/api/v1/queue", "/queue"):
        assert "secrethost" in place.client.get(path, headers=place.admin).text
        for who in (place.owner, place.team, place.signed_in):
            answer = place.client.get(path, headers=who)
            assert answer.status_code == 200
            assert "secrethost" not in answer.text
            assert "4711" not in answer.text


def test_an_idempotency_key_is_ones_own(place: Place) -> None:
    jobs = [
        place.client.post(JOBS, json=BODY, headers={**who, "Idempotency-Key": "same"})
        for who in (place.owner, place.another, place.owner)
    ]
    first, other, again = (answer.get_json()["id"] for answer in jobs)
    assert first == again != other


def test_a_visitors_token_that_was_not_signed_here_is_nobodys(make_site: Sites) -> None:
    site = make_site(TEXTMILL_ACCESS="demo", TEXTMILL_ALLOWED_HOSTS="demo.example.org")
    client = site.app.test_client(use_cookies=False)
    made = client.post(JOBS, json=BODY)
    token, path = made.headers[HEADER], made.get_json()["links"]["self"]
    assert client.get(path, headers={HEADER: token}).status_code == 200
    visitor_id, _, signature = token.partition(".")
    forged = [
        visitor_id,
        f"{visitor_id}.",
        f"{visitor_id}.{signature[:-1]}",
        f"{'0' * 32}.{signature}",
        f"{visitor_id}.{signature}x",
        f"{token}\u00e9",
        "",
    ]
    for bad in forged:
        assert client.get(path, headers={HEADER: bad}).status_code == 404, bad
        cookie = {"Cookie": f"textmill_visitor={bad}; textmill_owner={visitor_id}"}
        assert client.get(path, headers=cookie).status_code == 404, bad
    assert client.get(path, headers={"Cookie": f"textmill_visitor={token}"}).status_code == 200


def test_a_browser_keeps_its_visitor_and_can_be_forgotten(make_site: Sites) -> None:
    site = make_site(TEXTMILL_ACCESS="demo", TEXTMILL_ALLOWED_HOSTS="demo.example.org")
    browser, other = site.app.test_client(), site.app.test_client()
    cookie = browser.get("/").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    ids = [browser.post(JOBS, json=BODY).get_json()["id"] for _ in range(3)]
    kept = other.post(JOBS, json=BODY).get_json()["id"]
    assert len(browser.get(JOBS).get_json()["items"]) == 3
    assert "3 texts were deleted" in browser.post("/forget-me").text
    assert all(browser.get(f"{JOBS}/{job}").status_code == 404 for job in ids)
    assert other.get(f"{JOBS}/{kept}").status_code == 200


def test_a_browser_signs_in_with_a_key_until_the_key_is_revoked(make_site: Sites) -> None:
    site = make_site(TEXTMILL_ACCESS="team", TEXTMILL_ALLOWED_HOSTS="team.example.org")
    keys = KeyStore(site.services.store.engine)
    key, token = keys.create("anna", [READ, SUBMIT])
    browser = site.app.test_client()
    answer = browser.get("/history?q=a")
    assert answer.headers["Location"] == "/sign-in?next=%2Fhistory%3Fq%3Da"
    assert browser.post("/sign-in", data={"key": token[:-1]}).status_code == 401
    signed = browser.post("/sign-in", data={"key": f" {token} ", "next": "/history?q=a"})
    assert signed.headers["Location"] == "/history?q=a"
    assert token not in signed.headers["Set-Cookie"]
    assert browser.get("/history").status_code == 200
    keys.revoke(key.id)
    assert browser.get("/history").status_code == 303


ELSEWHERE = ("//evil.example", "https://evil.example", "/\\evil", "x", "/\n")


@pytest.mark.parametrize("address", ELSEWHERE)
def test_signing_in_leads_to_no_other_site(make_site: Sites, address: str) -> None:
    site = make_site(TEXTMILL_ACCESS="team", TEXTMILL_ALLOWED_HOSTS="team.example.org")
    token = KeyStore(site.services.store.engine).create("anna", [READ])[1]
    signed = site.app.test_client().post("/sign-in", data={"key": token, "next": address})
    assert signed.headers["Location"] == "/"


HOSTS: list[tuple[str, bool]] = [
    ("demo.example.org", True),
    ("DEMO.example.org:443", True),
    ("demo.example.org.", True),
    ("127.0.0.1:8000", True),
    ("[::1]:8000", True),
    ("localhost", True),
    ("192.0.2.7:8000", True),  # the address on which it listens
    ("evil.example", False),
    ("demo.example.org.evil.example", False),
    ("127.0.0.1.evil.example", False),
    ("10.0.0.1", False),
    ("demo.example.org@evil.example", False),
    ("evil.example#demo.example.org", False),
    ("demo.example.org:x", False),
]


@pytest.mark.parametrize("path", ["/", "/api/v1/jobs", "/healthz", "/static/icon.svg", "/nothing"])
@pytest.mark.parametrize(("host", "is_served"), HOSTS)
def test_a_request_for_another_host_is_421(
    make_site: Callable[..., Site], path: str, host: str, is_served: bool
) -> None:
    names: Any = {"TEXTMILL_ALLOWED_HOSTS": "demo.example.org", "TEXTMILL_HOST": "192.0.2.7"}
    site = make_site(TEXTMILL_ACCESS="demo", **names)
    answer = site.app.test_client().get(path, headers={"Host": host})
    answer.close()
    assert (answer.status_code != 421) == is_served


@pytest.mark.parametrize("path", [JOBS + "/x/cancel", "/api/v1/tokenize", "/jobs/x/delete"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_page_of_another_site_cannot_make_a_browser_write(
    make_site: Sites, path: str, headers: Headers
) -> None:
    answer = make_site().app.test_client().post(path, headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("asked", "is_allowed"),
    [("x-stainless-lang, x-stainless-os", True), ("x: y", False), ("x-a," * 999, False)],
)
def test_a_client_for_browsers_may_send_headers_of_its_own(
    make_site: Sites, asked: str, is_allowed: bool
) -> None:
    site = make_site(TEXTMILL_CORS_ORIGINS="https://app.example")
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
    }
    answer = site.client.options("/v1/completions", headers=headers)
    allowed = answer.headers["Access-Control-Allow-Headers"]
    assert "Authorization" in allowed
    assert (asked in allowed) == is_allowed
    elsewhere = site.client.options("/v1/completions", headers=headers | {"Origin": "https://b.c"})
    assert "Access-Control-Allow-Headers" not in elsewhere.headers


def test_an_allowed_origin_uses_the_api_with_a_preflight(make_site: Sites) -> None:
    site = make_site(
        TEXTMILL_ACCESS="demo",
        TEXTMILL_ALLOWED_HOSTS="demo.example.org",
        TEXTMILL_CORS_ORIGINS="https://app.example",
    )
    client = site.app.test_client()
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options(JOBS, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Content-Type" in preflight.headers["Access-Control-Allow-Headers"]
    origin = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    made = client.post(JOBS, json=BODY, headers=origin)
    assert made.status_code == 202
    exposed = made.headers["Access-Control-Expose-Headers"]
    assert {"Location", "ETag", "Retry-After"} <= set(exposed.split(", "))
    other = client.options(JOBS, headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    page = client.post("/jobs/x/delete", headers=origin)
    assert page.status_code == 403


def test_frames_are_allowed_where_the_setting_names_them(make_site: Sites) -> None:
    hosts: Any = {"TEXTMILL_ACCESS": "demo", "TEXTMILL_ALLOWED_HOSTS": "demo.example.org"}
    policy = "Content-Security-Policy"
    assert "frame-ancestors 'none'" in make_site(**hosts).client.get("/").headers[policy]
    framed = make_site(**hosts, TEXTMILL_EMBED_ORIGINS="https://huggingface.co").app.test_client()
    answer = framed.get("/", base_url="https://demo.example.org")
    assert "frame-ancestors 'self' https://huggingface.co" in answer.headers[policy]
    cookie = answer.headers["Set-Cookie"]
    assert "SameSite=None" in cookie
    assert "Secure" in cookie
    assert "Partitioned" in cookie


def test_everything_keeps_search_engines_away(place: Place) -> None:
    for path in ("/", "/api/v1/models", "/docs", "/nothing"):
        assert place.client.get(path, headers=place.owner).headers["X-Robots-Tag"] == "noindex"
    assert "Disallow: /" in place.client.get("/robots.txt").text


@pytest.mark.parametrize("kind", ["job", "run"])
def test_a_link_shows_one_text_to_everybody_until_it_ends(place: Place, kind: str) -> None:
    ids = place.stored(ROWS["api.jobs.read"])
    path = f"/api/v1/{kind}s/{ids[kind]}/share"
    made = place.client.post(path, json={"expires_days": 2}, headers=place.owner).get_json()
    again = place.client.post(path, json={"expires_days": 2}, headers=place.owner).get_json()
    assert made["url"] == again["url"]
    for who in ({}, place.another, place.expired, place.owner):
        shown = place.client.get(made["url"], headers=who)
        assert shown.status_code == 200
        assert MARK in shown.text
        assert shown.headers["X-Robots-Tag"] == "noindex"
        assert 'property="og:title"' in shown.text
        assert ids["job"] not in shown.text
        assert ids["run"] not in shown.text
        if who != place.owner:
            own = place.client.get(f"{JOBS}/{ids['job']}", headers=who)
            assert own.status_code in (401, 404)
    open_to_search = {"expires_days": 2, "index": True}
    place.client.post(path, json=open_to_search, headers=place.owner)
    assert place.client.get(made["url"]).headers["X-Robots-Tag"] == "all"
    with writing(place.site.services.store.engine) as connection:
        connection.execute(update(Share).values(expires_at=1))
    assert place.client.get(made["url"]).status_code == 404
    place.client.post(path, json={}, headers=place.owner)
    assert place.client.get(made["url"]).status_code == 200
    assert place.client.delete(path, headers=place.owner).status_code == 204
    assert place.client.get(made["url"]).status_code == 404
    new = place.client.post(path, json={}, headers=place.owner).get_json()
    assert new["url"] != made["url"]
    place.client.delete(f"{JOBS}/{ids['job']}", headers=place.owner)
    assert place.client.get(new["url"]).status_code == 404


def test_what_was_done_is_in_the_audit_log(place: Place) -> None:
    engine = place.site.services.store.engine
    num_before = latest(engine, 1)[0].number
    ids = place.stored(ROWS["api.jobs.cancel"])
    job = f"{JOBS}/{ids['job']}"
    place.client.post(f"{job}/share", json={}, headers=place.owner)
    place.client.post(f"{job}/cancel", headers=place.admin)
    place.client.delete(f"{job}", headers=place.admin)
    rows = [row for row in latest(engine, 50) if row.number > num_before]
    assert [(row.action, row.object) for row in reversed(rows)] == [
        ("share", ids["job"]),
        ("cancel", ids["job"]),
        ("delete", ids["job"]),
    ]
    assert rows[0].principal.startswith("key:")
    assert all(MARK not in str(row) for row in rows)
    assert latest(engine, 1, before=num_before + 2)[0].action == "share"


@pytest.mark.parametrize("address", ["/?from={job}", "/?from={job}&continue=1", "/?from_run={run}"])
def test_a_form_cannot_be_filled_from_a_job_of_somebody_else(place: Place, address: str) -> None:
    ids = place.stored(ROWS["api.jobs.read"])
    assert MARK not in place.client.get(address.format(**ids), headers=place.another).text


def test_old_jobs_go_and_starred_and_shared_ones_stay(make_site: Sites) -> None:
    site = make_site()
    engine = site.services.store.engine
    old = [site.write("old", " text") for _ in range(BATCH_JOBS + 3)]
    run = site.client.post(RUNS, json={"prompt": "old", "variants": [{}]}).get_json()
    site.finish(site.claim())
    site.client.post(f"{old[0]['links']['self']}/share", json={})
    for star in (site.client.post, site.client.post, site.client.delete):
        assert star(f"{old[2]['links']['self']}/star").status_code == 200
    starred = site.client.post(f"{old[1]['links']['self']}/star")
    assert starred.get_json()["starred"] is True
    waiting = site.submit("waits")
    with writing(engine) as connection:
        connection.execute(
            update(Job).where(Job.finished_at.is_not(None)).values(finished_at=Job.created_at - 1)
        )
    assert expire(engine, 1.0) == 0
    with writing(engine) as connection:
        day = 86_400_000
        connection.execute(
            update(Job)
            .where(Job.finished_at.is_not(None))
            .values(finished_at=Job.finished_at - 2 * day)
        )
    Upkeep(engine, keep_days=1.0).step()
    left = {job["id"] for job in site.client.get(JOBS).get_json()["items"]}
    assert left == {old[0]["id"], old[1]["id"], waiting["id"]}
    assert site.client.get(run["links"]["self"]).status_code == 404
    with reading(engine) as connection:
        of_old = select(func.count()).select_from(JobEvent).where(JobEvent.job_id == old[2]["id"])
        assert connection.execute(of_old).scalar_one() == 0


def test_an_admin_blocks_deletes_and_revokes(make_site: Sites, provider: Provider) -> None:
    hosts = {"TEXTMILL_ACCESS": "demo", "TEXTMILL_ALLOWED_HOSTS": "demo.example.org"}
    settings: Any = {**hosts, **provider.settings()}
    site = make_site(**settings)
    place = Place(site, "demo", "visitor")
    ids = place.stored(ROWS["api.jobs.read"])
    page = place.client.get("/admin", headers=place.admin).text
    owner = re.search(r"visitor:[0-9a-f]{32}", page)
    address = re.search(r"address:[0-9a-f]{32}", page)
    assert owner
    assert address
    assert MARK not in page

    def post(path: str, **data: str) -> int:
        return place.client.post(path, data=data, headers=place.admin).status_code

    for subject in (owner[0], address[0]):
        assert post("/admin/block", subject=subject, reason="spam") == 303
        refused = place.client.post(JOBS, json=BODY, headers=place.owner)
        assert refused.status_code == 403
        assert place.client.get(f"{JOBS}/{ids['job']}", headers=place.owner).status_code == 200
        assert post("/admin/unblock", subject=subject) == 303
        assert place.client.post(JOBS, json=BODY, headers=place.owner).status_code == 202
    assert post("/admin/block", subject="anna") == 422
    assert post("/admin/delete", job=ids["job"], reason="spam") == 303
    assert place.client.get(f"{JOBS}/{ids['job']}", headers=place.owner).status_code == 404
    assert post("/admin/revoke", key="reader") == 303
    assert place.client.get(JOBS, headers=place.reader).status_code == 401
    rows = latest(site.services.store.engine, 6)
    assert [(row.action, row.reason) for row in rows] == [
        ("key_revoke", None),
        ("delete", "spam"),
        ("unblock", None),
        ("block", "spam"),
        ("unblock", None),
        ("block", "spam"),
    ]
    assert all(row.principal.startswith("key:") for row in rows)
    assert "spam" in place.client.get("/admin", headers=place.admin).text


WORDS = (
    "naïve café",
    "ภาษาไทยเป็นภาษา",
    "한국어를 배우다",
    "Wombats, and 42 more!",
    "ガガーリン 🚀",
    "a",
)
SEARCHES = (
    *("cafe", "naive", "ไทย", "한국어", "42", "more wombats"),
    *("ガガ", "🚀", "an", "zebra", "and"),
)


def test_a_search_finds_the_same_in_few_jobs_and_in_many(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in WORDS:
        assert (
            place.client.post(JOBS, json={"prompt": prompt}, headers=place.owner).status_code == 202
        )
        place.client.post(JOBS, json={"prompt": prompt}, headers=place.another)

    def found(query: str) -> list[str]:
        answer = place.client.get(JOBS, query_string={"q": query}, headers=place.owner)
        return [job["prompt"] for job in answer.get_json()["items"]]

    by_rows = {query: found(query) for query in SEARCHES}
    monkeypatch.setattr(pages, "FEW_JOBS", 0)
    assert {query: found(query) for query in SEARCHES} == by_rows
    assert by_rows["cafe"] == ["naïve café"]
    assert by_rows["zebra"] == []
    assert by_rows["more wombats"] == ["Wombats, and 42 more!"]
