"""Classifies the errors of the database drivers, for SQLite and PostgreSQL alike.

An error is temporary (the database is unreachable, busy or restarting), lasting (it is read-only,
full, damaged or not migrated, until its operator fixes it), or about a value that the database
cannot store. None of them is an internal error of the product. Knows nothing of HTTP.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from textmill.core.errors import (
    Conflict,
    StorageRefused,
    StorageUnavailable,
    TextmillError,
    Unstorable,
)
from textmill.core.redaction import reason_of

TEMPORARY_RETRY_SECONDS = 2
REFUSED_RETRY_SECONDS = 10  # the operator has to act first
COMPLAINT_SECONDS = 10.0  # between two log lines about the same kind of error
log = structlog.get_logger(__name__)


class NoAnswer(psycopg.OperationalError):
    """The server did not answer before the deadline; the connection is closed."""


class Kind(Enum):
    """The kind of a database error; the value appears in the log."""

    BUSY = "busy"
    AWAY = "away"
    NO_ANSWER = "no_answer"
    MEMORY = "out_of_memory"
    READ_ONLY = "read_only"
    FULL = "disk_full"
    DAMAGED = "damaged"
    INPUT_OUTPUT = "input_output_error"
    SCHEMA = "schema_not_migrated"
    RIGHTS = "insufficient_rights"
    REFUSED = "refused"
    VALUE = "value"
    CONFLICT = "conflict"


_TEMPORARY = {
    Kind.BUSY: "The database is busy; try again in a moment.",
    Kind.AWAY: "The database cannot be reached; try again in a moment.",
    Kind.NO_ANSWER: "The database did not answer in time; try again in a moment.",
    Kind.MEMORY: "The database is out of memory; try again in a moment.",
}
_REFUSED = {
    Kind.READ_ONLY: "The database is read-only at present; try again later.",
    Kind.FULL: "The database's disk is full; try again when there is space.",
    Kind.DAMAGED: "The database is damaged; its operator has to restore it from a backup.",
    Kind.INPUT_OUTPUT: "The database cannot read or write its files; its operator has to check it.",
    Kind.SCHEMA: "The database's schema does not match this release; run `textmill migrate`.",
    Kind.RIGHTS: "The database denies a required permission; its operator has to grant it.",
    Kind.REFUSED: "The database refuses this; the log says why.",
}
# Such a connection may lead to a file or a server that was replaced: new ones are needed.
_STALE = {Kind.READ_ONLY, Kind.DAMAGED, Kind.INPUT_OUTPUT}

# https://www.postgresql.org/docs/current/errcodes-appendix.html: codes first, then classes.
_BY_SQLSTATE = {
    "25006": Kind.READ_ONLY,
    "25P03": Kind.AWAY,  # idle_in_transaction_session_timeout
    "25P04": Kind.BUSY,  # transaction_timeout
    "42501": Kind.RIGHTS,
    "53100": Kind.FULL,
    "53200": Kind.MEMORY,
    "53300": Kind.BUSY,  # too_many_connections
    "55P03": Kind.BUSY,  # lock_not_available
    "57014": Kind.BUSY,  # statement_timeout
    "57P04": Kind.REFUSED,  # database_dropped
    "58P01": Kind.DAMAGED,  # undefined_file
    "XX001": Kind.DAMAGED,
    "XX002": Kind.DAMAGED,
    "42P01": Kind.SCHEMA,
    "42703": Kind.SCHEMA,
    "3F000": Kind.SCHEMA,
}
_BY_SQLSTATE_CLASS = {
    "08": Kind.AWAY,
    "21": Kind.VALUE,
    "22": Kind.VALUE,
    "23": Kind.CONFLICT,
    "40": Kind.BUSY,  # serialization failure, deadlock
    "53": Kind.BUSY,
    "55": Kind.BUSY,
    "57": Kind.AWAY,  # shutdown, crash, starting up
    "58": Kind.INPUT_OUTPUT,
}
# https://www.sqlite.org/rescode.html, primary codes.
_BY_SQLITE_CODE = {
    sqlite3.SQLITE_BUSY: Kind.BUSY,
    sqlite3.SQLITE_LOCKED: Kind.BUSY,
    sqlite3.SQLITE_PROTOCOL: Kind.BUSY,
    sqlite3.SQLITE_INTERRUPT: Kind.BUSY,
    sqlite3.SQLITE_SCHEMA: Kind.BUSY,
    sqlite3.SQLITE_NOMEM: Kind.MEMORY,
    sqlite3.SQLITE_READONLY: Kind.READ_ONLY,
    sqlite3.SQLITE_FULL: Kind.FULL,
    sqlite3.SQLITE_IOERR: Kind.INPUT_OUTPUT,
    sqlite3.SQLITE_CANTOPEN: Kind.INPUT_OUTPUT,
    sqlite3.SQLITE_CORRUPT: Kind.DAMAGED,
    sqlite3.SQLITE_NOTADB: Kind.DAMAGED,
    sqlite3.SQLITE_FORMAT: Kind.DAMAGED,
    sqlite3.SQLITE_PERM: Kind.RIGHTS,
    sqlite3.SQLITE_AUTH: Kind.RIGHTS,
    sqlite3.SQLITE_TOOBIG: Kind.VALUE,
    sqlite3.SQLITE_MISMATCH: Kind.VALUE,
    sqlite3.SQLITE_RANGE: Kind.VALUE,
    sqlite3.SQLITE_CONSTRAINT: Kind.CONFLICT,
}
_NO_SUCH = ("no such table", "no such column", "has no column")


@dataclass(frozen=True, slots=True)
class DatabaseProblem:
    """The kind of a driver's error, and the error of ``core.errors`` to raise instead."""

    kind: Kind
    error: TextmillError

    @property
    def is_stale(self) -> bool:
        """Whether a new connection may see another database."""
        return self.kind in _STALE


def understand(error: BaseException) -> DatabaseProblem | None:
    """Classify an error of a driver or of SQLAlchemy; ``None`` if it is neither."""
    kind = _kind_of(error)
    if kind is None:
        return None
    if kind is Kind.VALUE:
        return DatabaseProblem(kind, Unstorable("A value of this request cannot be stored."))
    if kind is Kind.CONFLICT:
        return DatabaseProblem(kind, Conflict("The request met another one; send it again."))
    if kind in _TEMPORARY:
        sentence, seconds = _TEMPORARY[kind], TEMPORARY_RETRY_SECONDS
        return DatabaseProblem(kind, StorageUnavailable(sentence, retry_after_seconds=seconds))
    sentence, seconds = _REFUSED[kind], REFUSED_RETRY_SECONDS
    return DatabaseProblem(kind, StorageRefused(sentence, retry_after_seconds=seconds))


def _kind_of(error: BaseException) -> Kind | None:
    if isinstance(error, PoolTimeoutError):
        return Kind.BUSY
    original = getattr(error, "orig", None) or error
    if isinstance(original, psycopg.Error):
        return _kind_on_postgresql(original)
    if isinstance(original, sqlite3.Error):
        return _kind_on_sqlite(original)
    if isinstance(original, UnicodeError | OverflowError) and original is not error:
        return Kind.VALUE  # the driver could not send a value
    return Kind.REFUSED if isinstance(error, DBAPIError) else None


def _kind_on_postgresql(error: psycopg.Error) -> Kind:
    if isinstance(error, NoAnswer | psycopg.errors.ConnectionTimeout):
        return Kind.NO_ANSWER
    if error.sqlstate is None:  # raised by psycopg: the connection, or a value that cannot be sent
        if isinstance(error, psycopg.DataError):
            return Kind.VALUE
        is_lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Kind.AWAY if is_lost else Kind.REFUSED
    by_class = _BY_SQLSTATE_CLASS.get(error.sqlstate[:2], Kind.REFUSED)
    return _BY_SQLSTATE.get(error.sqlstate, by_class)


def _kind_on_sqlite(error: sqlite3.Error) -> Kind:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        is_value = isinstance(error, sqlite3.DataError | sqlite3.InterfaceError)
        return Kind.VALUE if is_value else Kind.REFUSED
    if code & 0xFF == sqlite3.SQLITE_ERROR:
        return Kind.SCHEMA if any(words in str(error) for words in _NO_SUCH) else Kind.REFUSED
    return _BY_SQLITE_CODE.get(code & 0xFF, Kind.REFUSED)


class Complaints:
    """Logs database errors, at most one of each kind in ten seconds.

    While a database is unreachable every request fails with the same error; a line for each would
    hide the one that says why.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._said_at: dict[Kind, float] = {}  # guarded by _lock, like _num_unsaid
        self._num_unsaid: dict[Kind, int] = {}

    def complain(self, kind: Kind, error: BaseException) -> None:
        """Log an error, unless one of its kind was logged in the last ten seconds."""
        with self._lock:
            now = self._clock()
            if now - self._said_at.get(kind, -COMPLAINT_SECONDS) < COMPLAINT_SECONDS:
                self._num_unsaid[kind] = self._num_unsaid.get(kind, 0) + 1
                return
            self._said_at[kind] = now
            num_unsaid = self._num_unsaid.pop(kind, 0)
        say = log.warning if kind in _TEMPORARY else log.error
        event = "database_unavailable" if kind in _TEMPORARY else "database_refused"
        say(event, kind=kind.value, reason=reason_of(error), more_since_last=num_unsaid)
