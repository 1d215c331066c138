"""Who somebody is by a provider's claims, and who is let in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.core.access.identities import (
    MAX_NAME_CHARACTERS,
    SignInRules,
    identity_of,
    user_id,
)

ISSUER = "https://login.example.org"
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
NAMES = ("sub", "name", "email", "email_verified", "groups", "preferred_username")


def rules(admins: str = "", allowed: str = "") -> SignInRules:
    return SignInRules(frozenset(admins.split()), frozenset(allowed.split()))


def test_the_id_of_a_person_depends_on_issuer_and_subject_alone() -> None:
    anna = identity_of(ISSUER, {"sub": "1", "email": "a@example.org", "email_verified": True})
    assert anna.user_id == identity_of(ISSUER, {"sub": "1", "name": "B"}).user_id
    ids = {user_id(issuer, sub) for issuer in (ISSUER, f"{ISSUER}/") for sub in ("1", "2", "/ 1")}
    assert len(ids) == 6
    assert all(len(found) == 32 for found in ids)


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"name": "Anna", "preferred_username": "a"}, "Anna"),
        ({"name": " ", "preferred_username": "a"}, "a"),
        ({"name": 7, "email": "a@example.org"}, "a@example.org"),
        ({}, "s"),
        ({"name": "a\u202eb\nc\0\ud800"}, "a b c"),
        ({"name": "x" * 1000}, "x" * MAX_NAME_CHARACTERS),
    ],
)
def test_a_name_is_one_line_that_can_be_shown(claims: dict[str, Any], name: str) -> None:
    assert identity_of(ISSUER, {"sub": "s", **claims}).name == name


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING))
def test_claims_of_any_form_give_an_identity_or_a_value_error(claims: dict[str, Any]) -> None:
    try:
        found = identity_of(ISSUER, claims)
    except ValueError:
        return
    assert found.subject == claims["sub"]
    assert found.name
    assert found.name.isprintable()
    found.name.encode()
    assert not found.email or claims["email_verified"] in (True, "true")
    assert not rules("ops@example.org", "@example.org writers").may_sign_in(found)


def test_an_email_counts_only_if_the_provider_has_verified_it() -> None:
    for verified, email in ((True, "a@b"), ("true", "a@b"), (1, ""), ("True", ""), (None, "")):
        found = identity_of(ISSUER, {"sub": "1", "email": "A@B", "email_verified": verified})
        assert found.email == email


def test_admins_may_sign_in_although_they_are_not_in_the_list() -> None:
    ops = identity_of(ISSUER, {"sub": "ops"})
    assert rules("ops", "@example.org").may_sign_in(ops)
    assert not rules("", "@example.org").may_sign_in(ops)
    assert rules().may_sign_in(ops)
    assert not rules().is_admin(ops)
