"""API keys on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select, update

from textmill.core.access.keys import KeyStore
from textmill.core.access.principals import ADMIN, READ, SUBMIT
from textmill.core.access.tokens import digest, new_token
from textmill.core.database.access_tables import ApiKey
from textmill.core.database.connections import make_engine, reading, writing
from textmill.core.errors import Conflict, NotFound, Unauthorized


@pytest.fixture
def keys(database_url: str) -> Iterator[KeyStore]:
    engine = make_engine(database_url)
    yield KeyStore(engine)
    engine.dispose()


def test_a_key_is_found_by_its_secret_which_is_not_stored(keys: KeyStore) -> None:
    made, token = keys.create("anna", [SUBMIT, READ], tokens_per_day=7)
    with reading(keys._engine) as connection:
        row = connection.execute(select(ApiKey.__table__)).one()
    assert token not in map(str, row)
    assert digest(token) in map(str, row)
    found = keys.authenticate(token)
    assert (found.id, found.scopes, found.tokens_per_day) == (made.id, (READ, SUBMIT), 7)
    assert made.last_used_at is None
    assert keys.all()[0].last_used_at is not None
    assert token.startswith(found.prefix)


def test_unknown_expired_and_revoked_keys_are_refused_with_the_reason(keys: KeyStore) -> None:
    with pytest.raises(Unauthorized, match="complete"):
        keys.authenticate("tm_" + "x" * 49)
    with pytest.raises(Unauthorized, match="unknown"):
        keys.authenticate(new_token())
    old, token = keys.create("old", [READ], expires_seconds=60)
    assert keys.authenticate(token).is_valid
    with writing(keys._engine) as connection:
        connection.execute(update(ApiKey).values(expires_at=1))
    with pytest.raises(Unauthorized, match="expired"):
        keys.authenticate(token)
    _, other = keys.create("other", [READ])
    keys.revoke("other")
    with pytest.raises(Unauthorized, match="revoked"):
        keys.authenticate(other)
    assert [key.is_valid for key in keys.all()] == [False, False]
    assert old.is_valid


def test_a_name_is_used_once_among_the_keys_in_use(keys: KeyStore) -> None:
    first, _ = keys.create("anna", [READ])
    with pytest.raises(Conflict, match="anna"):
        keys.create("anna", [READ])
    assert keys.revoke(first.prefix).id == first.id
    second, _ = keys.create("anna", [READ])
    assert keys.revoke(second.id).name == "anna"
    with pytest.raises(NotFound):
        keys.revoke("anna")


def test_whether_there_is_an_admin(keys: KeyStore) -> None:
    keys.create("anna", [READ, SUBMIT])
    assert not keys.has_admin()
    keys.create("ops", [ADMIN])
    assert keys.has_admin()
    keys.revoke("ops")
    assert not keys.has_admin()
