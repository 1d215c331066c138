"""Errors in the logs, which never contain a prompt, a completion, a cookie or a password."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
import structlog
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from textmill.core.errors import SettingsError, StorageUnavailable
from textmill.core.logs import configure_logs
from textmill.core.redaction import (
    mask_credentials,
    reason_of,
    traceback_of,
    without_paths,
)
from textmill.core.settings import Settings

MARK = "Seven purple elephants"


class Body(BaseModel):
    """A body with an invalid number."""

    number: int


def raised_by(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _refused_by_sqlite() -> None:
    engine = create_engine("sqlite://")  # parameters shown, as by an engine that is not ours
    with engine.connect() as connection:
        connection.execute(text("SELECT * FROM nothing WHERE x = :x"), {"x": MARK})


ERRORS: dict[str, Callable[[], object]] = {
    "sqlalchemy": _refused_by_sqlite,
    "pydantic": lambda: Body.model_validate({"number": MARK}),
    "int": lambda: int(MARK),
    "key": lambda: dict[str, str]()[MARK],
    "encoding": lambda: (MARK + "\ud800").encode(),
    "json": lambda: json.loads("{" + MARK),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_told_without_the_value_that_it_is_about(name: str) -> None:
    error = raised_by(ERRORS[name])
    for told in (reason_of(error), traceback_of(error)):
        assert MARK not in told
        assert told
    assert type(error).__name__ in traceback_of(error)
    assert "test_redaction" in traceback_of(error)  # the traceback names the place


@pytest.mark.parametrize("sqlstate", ["23514", "23505", "22P02", "22001"])
def test_what_postgresql_says_of_a_value_is_left_out(sqlstate: str) -> None:
    message = f'new row violates a rule\nDETAIL: Failing row contains ({MARK}, "{MARK}").'
    error = OperationalError("x", {"p": MARK}, psycopg.errors.lookup(sqlstate)(message))
    assert MARK not in reason_of(error)
    assert MARK not in traceback_of(error)
    assert sqlstate in reason_of(error)


def test_the_causes_of_an_error_are_told_in_their_order_and_without_values() -> None:
    def fail() -> None:
        try:
            int(MARK)
        except ValueError as error:
            raise StorageUnavailable("It is away.", retry_after_seconds=1) from error

    told = traceback_of(raised_by(fail))
    assert MARK not in told
    assert told.index("ValueError") < told.index("StorageUnavailable: It is away.")


def test_our_own_sentences_and_the_system_s_are_kept() -> None:
    assert reason_of(SettingsError("TEXTMILL_PORT is 'x'.")) == "TEXTMILL_PORT is 'x'."
    assert "No such file" in reason_of(raised_by(lambda: open("/nowhere/at/all")))  # noqa: SIM115
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    assert reason_of(error) == "SQLITE_BUSY: database is locked"


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://anna:s3cret@host/db", "redis://:s3cret@127.0.0.1:1/0",
     "rediss://anna:s3cr:et@host", "amqp://anna:s3cret%40@host//"],
)  # fmt: skip
def test_passwords_of_urls_are_masked(url: str) -> None:
    masked = mask_credentials(f"cannot reach {url}, nor http://host/a:b@c")
    assert "s3cr" not in masked
    assert "***@" in masked
    assert masked.endswith("http://host/a:b@c")


@pytest.mark.parametrize("name", ["TEXTMILL_DATABASE_URL", "TEXTMILL_REDIS_URL"])
def test_a_url_that_cannot_be_used_is_not_shown(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: "anna:s3cret@host"})
    assert name in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What ``configure_logs`` sends to standard error."""
    stream = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers, root.level, sys.excepthook, threading.excepthook)
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs(Settings.from_environment({"TEXTMILL_LOG_FORMAT": "json"}))
    yield stream
    root.handlers, level, sys.excepthook, threading.excepthook = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_every_way_into_the_log_leaves_values_and_passwords_out(logged: io.StringIO) -> None:
    log = structlog.get_logger("ours")
    url = "redis://anna:s3cret@host/0"
    for call in ERRORS.values():
        error = raised_by(call)
        log.error("failed", exc_info=error)
        logging.getLogger("library").error("failed %s", url, exc_info=error)
        sys.excepthook(type(error), error, error.__traceback__)
        dead = threading.Thread(target=call)
        dead.start()
        dead.join()
        try:
            call()
        except Exception:
            log.exception("failed", url=url)
            logging.getLogger("gunicorn.error").exception("failed")
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert len(lines) == 6 * len(ERRORS)
    assert all(line["exception"] for line in lines)
    assert MARK not in logged.getvalue()
    assert "s3cret" not in logged.getvalue()
    assert "redis://***@host/0" in logged.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "The weights in /srv/m/tiny miss x.",
            "The weights in …/tiny miss x.",
        ),
        (
            "The file /home/a/m.toml: bad (line 1).",
            "The file …/m.toml: bad (line 1).",
        ),
        ("/srv/our models/x.gguf cannot be read.", "…/x.gguf cannot be read."),
        ("[Errno 2] No such file: '/var/x/y'", "[Errno 2] No such file: '…/y'"),
        ("~ada/models/x and ~/y", "…/x and …/y"),
        ("/a/b cannot be read. Remove /c/d; load it", "…/b cannot be read. Remove …/d; load it"),
        ("ended (textmill: /x/y/z: bad); restarting", "ended (textmill: …/z: bad); restarting"),
        ("https://huggingface.co/a/b is away", "https://huggingface.co/a/b is away"),
        ("org/model has 3/4 of its tensors", "org/model has 3/4 of its tensors"),
        ("lower it / raise it", "lower it / raise it"),
    ],
)
def test_visitors_see_no_folder_of_the_server(text: str, shown: str) -> None:
    assert without_paths(text) == shown
