"""People who signed in, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from textmill.core.access.audit import latest
from textmill.core.access.identities import Identity, identity_of
from textmill.core.access.principals import EVERYTHING, LOCAL, READ, SUBMIT, Sight
from textmill.core.access.users import UserStore
from textmill.core.database.connections import make_engine
from textmill.core.errors import Forbidden, NotFound, Unauthorized


@pytest.fixture
def users(database_url: str) -> Iterator[UserStore]:
    engine = make_engine(database_url)
    yield UserStore(engine)
    engine.dispose()


def person(subject: str = "anna", **claims: object) -> Identity:
    return identity_of("https://login.example.org", {"sub": subject, **claims})


def test_a_person_is_remembered_once_with_what_the_latest_sign_in_said(users: UserStore) -> None:
    first = users.sign_in(person(name="Anna"), is_admin=True)
    second = users.sign_in(
        person(name="Anna B.", email="A@b.org", email_verified=True), is_admin=False
    )
    assert second.id == first.id
    assert (second.name, second.email, second.is_admin) == ("Anna B.", "a@b.org", False)
    assert second.created_at == first.created_at
    assert users.all() == [second]
    assert first.principal.changes == first.principal.reads == EVERYTHING
    assert second.principal.reads == Sight(f"user:{first.id}")
    assert second.principal.scopes == {READ, SUBMIT}
    assert second.principal.name == "a@b.org"


def test_signing_in_twice_at_once_makes_one_person(users: UserStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: users.sign_in(person(), is_admin=False), range(8)))
    assert len({user.id for user in found}) == len(users.all()) == 1
    assert all(users.by_session(user.id, user.session_number) for user in found)


def test_sessions_end_when_a_person_signs_out_or_is_disabled(users: UserStore) -> None:
    anna = users.sign_in(person(), is_admin=False)
    carl = users.sign_in(person("carl"), is_admin=False)
    users.end_sessions(anna.id)
    with pytest.raises(Unauthorized, match="ended"):
        users.by_session(anna.id, anna.session_number)
    again = users.sign_in(person(), is_admin=False)
    assert users.by_session(again.id, again.session_number).id == anna.id
    users.disable(anna.id, LOCAL)
    with pytest.raises(Unauthorized, match="operator"):
        users.by_session(again.id, again.session_number)
    with pytest.raises(Forbidden, match="disabled"):
        users.sign_in(person(), is_admin=True)
    assert not users.by_session(carl.id, carl.session_number).is_admin
    users.enable(anna.id, LOCAL)
    with pytest.raises(Unauthorized, match="ended"):
        users.by_session(again.id, again.session_number)
    assert users.sign_in(person(), is_admin=False).disabled_at is None
    actions = [row.action for row in latest(users._engine, 5)]
    assert actions == ["user_enable", "user_disable"]


def test_nobody_who_never_signed_in_has_a_session_or_can_be_disabled(users: UserStore) -> None:
    with pytest.raises(Unauthorized):
        users.by_session("0" * 32, 1)
    for change in (users.disable, users.enable):
        with pytest.raises(NotFound):
            change("0" * 32, LOCAL)
    assert latest(users._engine, 5) == []
