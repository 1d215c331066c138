"""Prices, accounts, and the fields that tell clients what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from textmill.core.access.budgets import (
    ADDRESS_FACTOR,
    UNLIMITED,
    Account,
    in_words,
    price,
    rate_limit_headers,
)
from textmill.core.access.principals import ADMIN, READ, SUBMIT, key_holder, local, visitor
from textmill.core.errors import Quota
from textmill.core.settings import Settings

DEMO = Settings(access="demo", allowed_hosts=("demo.example.org",))


def test_a_price_counts_beams_and_a_trace() -> None:
    assert price(10, 100) == 110
    assert price(10, 100, num_beams=4) == 410
    assert price(10, 90, has_trace=True) == 110


def test_who_has_limits() -> None:
    keys = {"scopes": [READ, SUBMIT], "sees_all": False}
    assert Account.of(local("ip:1"), Settings()) == Account("ip:1")
    admin = key_holder("a", "ops", [ADMIN], sees_all=False)
    assert Account.of(admin, DEMO).budget == UNLIMITED
    guest = Account.of(visitor("v", "home"), DEMO)
    assert guest.budget.tokens_per_day == DEMO.visitor_tokens_per_day
    names = dict(guest.subjects())
    assert names["visitor:v"] == guest.budget
    assert names["address:home"].tokens_per_day == ADDRESS_FACTOR * guest.budget.tokens_per_day
    own = key_holder("k", "anna", **keys, tokens_per_day=7)  # type: ignore[arg-type]
    assert Account.of(own, DEMO).budget.tokens_per_day == 7
    assert Account.of(replace(own, tokens_per_day=None), DEMO).budget.tokens_per_day == 0
    assert len(Account.of(own, DEMO).subjects()) == 1


def test_the_fields_of_the_draft() -> None:
    quotas = [Quota("minute", 100, 40, 31), Quota("day", 1000, 900, 86_000)]
    assert rate_limit_headers(quotas) == {
        "RateLimit-Policy": '"minute";q=100;w=60, "day";q=1000;w=86400',
        "RateLimit": '"minute";r=40;t=31, "day";r=900;t=86000',
    }
    assert rate_limit_headers([]) == {}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "in 5 seconds"), (89, "in 89 seconds"), (600, "in 10 minutes"), (86_400, "in 24 hours")],
)
def test_a_wait_in_words(seconds: int, words: str) -> None:
    assert in_words(seconds) == words
