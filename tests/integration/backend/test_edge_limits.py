"""Limits of requests by address, with Redis and without it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.backend.conftest import JOBS, Site, Sites, problem
from tests.servers import RedisServer
from textmill.backend.access.edge_limits import BY_ENDPOINT


def open_site(make_site: Sites, **settings: Any) -> Site:
    named = {f"TEXTMILL_{name}": str(value) for name, value in settings.items()}
    hosts = {"TEXTMILL_ALLOWED_HOSTS": "demo.example.org", "TEXTMILL_TRUSTED_PROXIES": "1"}
    return make_site(TEXTMILL_ACCESS="demo", **hosts, **named)  # type: ignore[arg-type]


def at(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


def test_an_address_that_asks_too_often_waits_and_others_do_not(
    make_site: Sites, own_redis: RedisServer
) -> None:
    site = open_site(make_site, REQUESTS_PER_MINUTE=5, REDIS_URL=own_redis.url)
    address = at("198.51.100.21")
    answers = [site.client.get(JOBS, headers=address) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    document = problem(answers[-1], 429)
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 61  # the library rounds up
    assert "your address" in document["detail"]
    page = site.client.get("/history", headers=address)
    assert page.status_code == 429
    assert page.content_type.startswith("text/html")
    assert site.client.get(JOBS, headers=at("198.51.100.22")).status_code == 200
    assert site.client.get("/healthz", headers=address).status_code == 200
    networks = [at(f"2001:db8:5::{number}") for number in range(6)]
    ipv6 = [site.client.get(JOBS, headers=network).status_code for network in networks]
    assert ipv6 == [200] * 5 + [429]


@pytest.mark.parametrize("is_redis_up", [True, False])
def test_guessing_keys_ends_after_ten(
    make_site: Sites, own_redis: RedisServer, *, is_redis_up: bool
) -> None:
    site = open_site(make_site, REQUESTS_PER_MINUTE=600, REDIS_URL=own_redis.url)
    if not is_redis_up:
        own_redis.stop()
    address = at("203.0.113.5")
    number = BY_ENDPOINT["pages.sign_in.sign_in"]
    answers = [
        site.client.post("/sign-in", data={"key": "tm_x"}, headers=address).status_code
        for _ in range(number + 1)
    ]
    assert answers == [401] * number + [429]


def test_on_ones_own_machine_nothing_is_counted(make_site: Sites) -> None:
    site = make_site(TEXTMILL_REQUESTS_PER_MINUTE="3")
    assert {site.client.get(JOBS).status_code for _ in range(9)} == {200}
