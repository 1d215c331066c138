"""Problems are stored once and expire, on both databases."""

from __future__ import annotations

from sqlalchemy import Engine, update

from textmill.core.database.connections import writing
from textmill.core.database.tables import Problem
from textmill.core.problems import (
    MAX_REASON_CHARACTERS,
    REMEMBERED_SECONDS,
    Subject,
    in_words,
    problems,
    report,
    solve,
)
from textmill.worker.problems import ProblemBoard

HERE = Subject("here", "model", "tiny")


def reasons(engine: Engine) -> list[tuple[str, str, str, str]]:
    return [(item.host, item.kind, item.name, item.reason) for item in problems(engine)]


def make_time_pass(engine: Engine, seconds: float) -> None:
    with writing(engine) as connection:
        connection.execute(update(Problem).values(until=Problem.until - int(seconds * 1000)))


def test_the_last_word_on_a_subject_counts_until_it_is_solved(database: Engine) -> None:
    other = Subject("there", "model", "tiny")
    report(database, HERE, "It is too large.", 60)
    report(database, other, "It is not there.", 60)
    report(database, HERE, "It is cut off.", 60)
    assert reasons(database) == [
        ("here", "model", "tiny", "It is cut off."),
        ("there", "model", "tiny", "It is not there."),
    ]
    solve(database, HERE)
    solve(database, HERE)
    assert reasons(database) == [("there", "model", "tiny", "It is not there.")]


def test_a_word_that_is_not_said_again_is_forgotten(database: Engine) -> None:
    report(database, HERE, "It is cut off.", 60)
    make_time_pass(database, 61)
    assert reasons(database) == []
    report(database, Subject("here", "worker", "worker-1"), "ended", 60)
    with database.connect() as connection:
        assert connection.execute(Problem.__table__.select()).all()[0].name == "worker-1"


def test_a_reason_of_any_length_and_any_characters_can_be_kept(database: Engine) -> None:
    report(database, HERE, "a\0b" + "x" * 10_000, 60)
    [(_, _, _, reason)] = reasons(database)
    assert len(reason) == MAX_REASON_CHARACTERS
    assert reason.startswith("abx")


def test_every_kind_reads_as_a_sentence() -> None:
    assert in_words("model", "tiny", "No file.") == "The model tiny is left out: No file."
    assert in_words("models_file", "models file", "It is wrong.") == "It is wrong."
    assert in_words("worker", "worker-1", "ended.") == "The process worker-1 ended."


def test_a_worker_stores_what_is_new_and_says_it_again_before_it_is_forgotten(
    database: Engine, database_url: str
) -> None:
    now = 0.0
    board = ProblemBoard(database_url, "here", clock=lambda: now)
    board.report("model", "tiny", "It is cut off.")
    board.report("model", "other", None)
    board.send()
    assert reasons(database) == [("here", "model", "tiny", "It is cut off.")]
    make_time_pass(database, REMEMBERED_SECONDS)
    board.send()
    assert reasons(database) == []  # nothing changed, and the next report is not due
    now = REMEMBERED_SECONDS / 2 + 1
    board.send()
    assert reasons(database) == [("here", "model", "tiny", "It is cut off.")]
    board.report("model", "tiny", None)
    board.send()
    assert reasons(database) == []


def test_a_word_that_cannot_be_stored_is_stored_at_the_next_chance(
    database: Engine, database_url: str
) -> None:
    board = ProblemBoard("sqlite:////dev/null/no/such/folder.db", "here")
    board.report("model", "tiny", "It is cut off.")
    board.send()  # no error on either database
    board._database_url = database_url
    board.send()
    assert reasons(database) == [("here", "model", "tiny", "It is cut off.")]


def test_a_database_without_the_table_ends_no_worker(database: Engine, database_url: str) -> None:
    with writing(database) as connection:
        Problem.__table__.drop(connection)  # type: ignore[attr-defined]
    board = ProblemBoard(database_url, "here")
    board.report("model", "tiny", "It is cut off.")
    board.send()
