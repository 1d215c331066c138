"""The meaning of the errors of both drivers, and how often they are logged."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, InvalidRequestError, StatementError
from sqlalchemy.exc import OperationalError as SqlalchemyOperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.testing import capture_logs

from textmill.core.database.errors import COMPLAINT_SECONDS, Complaints, Kind, NoAnswer, understand
from textmill.core.errors import (
    Conflict,
    StorageRefused,
    StorageUnavailable,
    TextmillError,
    Unstorable,
)


def on_postgresql(sqlstate: str) -> psycopg.Error:
    return psycopg.errors.lookup(sqlstate)("the server's words about 'a prompt'")


def on_sqlite(name: str, message: str = "the file's words") -> sqlite3.Error:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorname = name
    error.sqlite_errorcode = getattr(sqlite3, name)
    return error


def wrapped(error: BaseException) -> DBAPIError:
    return SqlalchemyOperationalError("UPDATE jobs", {"text": "a prompt"}, error)


def kind_of(error: BaseException) -> Kind:
    problem = understand(error)
    assert problem is not None
    return problem.kind


@pytest.mark.parametrize(
    ("sqlstate", "kind", "error"),
    [
        ("08006", Kind.AWAY, StorageUnavailable),
        ("57P01", Kind.AWAY, StorageUnavailable),
        ("57P02", Kind.AWAY, StorageUnavailable),
        ("57P03", Kind.AWAY, StorageUnavailable),
        ("57014", Kind.BUSY, StorageUnavailable),
        ("55P03", Kind.BUSY, StorageUnavailable),
        ("40001", Kind.BUSY, StorageUnavailable),
        ("40P01", Kind.BUSY, StorageUnavailable),
        ("53300", Kind.BUSY, StorageUnavailable),
        ("53200", Kind.MEMORY, StorageUnavailable),
        ("25006", Kind.READ_ONLY, StorageRefused),
        ("53100", Kind.FULL, StorageRefused),
        ("58030", Kind.INPUT_OUTPUT, StorageRefused),
        ("XX000", Kind.REFUSED, StorageRefused),
        ("XX001", Kind.DAMAGED, StorageRefused),
        ("XX002", Kind.DAMAGED, StorageRefused),
        ("42P01", Kind.SCHEMA, StorageRefused),
        ("42703", Kind.SCHEMA, StorageRefused),
        ("42501", Kind.RIGHTS, StorageRefused),
        ("42601", Kind.REFUSED, StorageRefused),
        ("22021", Kind.VALUE, Unstorable),
        ("22003", Kind.VALUE, Unstorable),
        ("23505", Kind.CONFLICT, Conflict),
        ("23514", Kind.CONFLICT, Conflict),
    ],
)
def test_a_sqlstate_has_a_meaning_bare_and_wrapped(
    sqlstate: str, kind: Kind, error: type[TextmillError]
) -> None:
    for raised in (on_postgresql(sqlstate), wrapped(on_postgresql(sqlstate))):
        problem = understand(raised)
        assert problem is not None
        assert (problem.kind, type(problem.error)) == (kind, error)
        assert "prompt" not in str(problem.error)


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("SQLITE_BUSY", Kind.BUSY, StorageUnavailable),
        ("SQLITE_BUSY_SNAPSHOT", Kind.BUSY, StorageUnavailable),
        ("SQLITE_LOCKED", Kind.BUSY, StorageUnavailable),
        ("SQLITE_NOMEM", Kind.MEMORY, StorageUnavailable),
        ("SQLITE_READONLY", Kind.READ_ONLY, StorageRefused),
        ("SQLITE_READONLY_DBMOVED", Kind.READ_ONLY, StorageRefused),
        ("SQLITE_FULL", Kind.FULL, StorageRefused),
        ("SQLITE_IOERR", Kind.INPUT_OUTPUT, StorageRefused),
        ("SQLITE_IOERR_FSYNC", Kind.INPUT_OUTPUT, StorageRefused),
        ("SQLITE_CANTOPEN", Kind.INPUT_OUTPUT, StorageRefused),
        ("SQLITE_CORRUPT", Kind.DAMAGED, StorageRefused),
        ("SQLITE_CORRUPT_VTAB", Kind.DAMAGED, StorageRefused),
        ("SQLITE_NOTADB", Kind.DAMAGED, StorageRefused),
        ("SQLITE_ERROR", Kind.REFUSED, StorageRefused),
        ("SQLITE_TOOBIG", Kind.VALUE, Unstorable),
        ("SQLITE_CONSTRAINT_UNIQUE", Kind.CONFLICT, Conflict),
    ],
)
def test_a_code_of_sqlite_has_a_meaning_bare_and_wrapped(
    name: str, kind: Kind, error: type[TextmillError]
) -> None:
    for raised in (on_sqlite(name), wrapped(on_sqlite(name))):
        problem = understand(raised)
        assert problem is not None
        assert (problem.kind, type(problem.error)) == (kind, error)


@pytest.mark.parametrize("words", ["no such table: jobs", "no such column: x", "has no column x"])
def test_a_schema_that_was_not_migrated_is_known_by_its_words_on_sqlite(words: str) -> None:
    assert kind_of(on_sqlite("SQLITE_ERROR", words)) is Kind.SCHEMA


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.OperationalError("connection refused"), Kind.AWAY),
        (psycopg.InterfaceError("the connection is closed"), Kind.AWAY),
        (psycopg.errors.ConnectionTimeout("timeout"), Kind.NO_ANSWER),
        (NoAnswer("silence"), Kind.NO_ANSWER),
        (psycopg.DataError("text fields cannot contain NUL"), Kind.VALUE),
        (psycopg.ProgrammingError("a mistake"), Kind.REFUSED),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), Kind.REFUSED),
        (PoolTimeoutError("QueuePool limit"), Kind.BUSY),
        (DBAPIError("select", {}, Exception("another driver's")), Kind.REFUSED),
        (StatementError("x", "select", {}, OverflowError("too large")), Kind.VALUE),
    ],
)
def test_what_is_raised_on_this_side_has_a_meaning_too(error: Exception, kind: Kind) -> None:
    assert kind_of(error) is kind


@pytest.mark.parametrize(
    "error", [ValueError("x"), InvalidRequestError("x"), OverflowError("x"), KeyError("x")]
)
def test_what_no_database_raised_is_left_alone(error: Exception) -> None:
    assert understand(error) is None


def test_all_that_is_unavailable_says_when_to_come_back() -> None:
    for kind_error in (on_postgresql("25006"), on_postgresql("57P01")):
        problem = understand(kind_error)
        assert problem is not None
        assert isinstance(problem.error, StorageUnavailable)
        assert problem.error.retry_after_seconds > 0


def test_a_connection_to_what_may_have_been_replaced_is_stale() -> None:
    stale = {"SQLITE_READONLY", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR"}
    for name in (*stale, "SQLITE_BUSY", "SQLITE_FULL"):
        problem = understand(on_sqlite(name))
        assert problem is not None
        assert problem.is_stale == (name in stale)


def test_the_log_is_told_once_a_while_and_how_often_it_was_not() -> None:
    now = [100.0]
    complaints = Complaints(lambda: now[0])
    said: list[Any]
    with capture_logs() as said:
        for _ in range(50):
            complaints.complain(Kind.DAMAGED, wrapped(on_sqlite("SQLITE_CORRUPT")))
        complaints.complain(Kind.AWAY, psycopg.OperationalError("refused"))
        now[0] += COMPLAINT_SECONDS
        complaints.complain(Kind.DAMAGED, wrapped(on_sqlite("SQLITE_CORRUPT")))
    assert [(line["event"], line["log_level"], line["more_since_last"]) for line in said] == [
        ("database_refused", "error", 0),
        ("database_unavailable", "warning", 0),
        ("database_refused", "error", 49),
    ]
    assert "prompt" not in str(said)
