"""The statements that every submission and every claim makes read an index, not the history."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from sqlalchemy import Engine, Select, event, insert, text

from textmill.core.access.holdings import _OF_CLIENT, _OF_VISITOR
from textmill.core.access.principals import EVERYTHING, Sight
from textmill.core.database.connections import writing
from textmill.core.database.maintenance import STALE
from textmill.core.database.tables import JOBS, Job
from textmill.core.jobs.admission import VIRTUAL_STARTS
from textmill.core.jobs.claims import CANDIDATE
from textmill.core.jobs.pages import Filters, _query
from textmill.core.jobs.sweeping import MAX_LOSSES

NUM_ENDED = 3_000
NUM_WAITING = 20


@pytest.fixture
def history(database: Engine) -> Engine:
    """One owner's long history, with a few jobs that wait, and statistics of all that."""
    now = int(time.time() * 1000)
    row = {
        "owner_id": "anna", "model": "m", "prompt": "p" * 100, "strategy": "greedy",
        "parameters": {}, "has_trace": False, "status": "succeeded", "virtual_start": 1,
        "attempt": 1, "lost_count": 0, "not_before": 0, "deadline_at": now + 10**9, "text": "t",
        "search_text": "p", "search_rules": 1, "num_completion_tokens": 1, "created_at": now,
        "finished_at": now,
    }  # fmt: skip
    rows = [row | {"id": f"ended-{n}", "virtual_start": n} for n in range(NUM_ENDED)]
    waiting = {"status": "queued", "search_rules": None, "finished_at": None}
    rows += [row | waiting | {"id": f"w-{n}", "virtual_start": n} for n in range(NUM_WAITING)]
    with writing(database) as connection:
        connection.execute(insert(JOBS), rows)
        connection.execute(text("ANALYZE"))
    return database


def plan(engine: Engine, query: Select[*tuple[Any, ...]], values: dict[str, Any]) -> str:
    """How the database would execute a query, as it says itself."""
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "

    def ask(connection: object, cursor: object, statement: str, parameters: Any, *_: Any) -> Any:
        return explain + statement, parameters

    event.listen(engine, "before_cursor_execute", ask, retval=True)
    try:
        with engine.connect() as connection:
            raw = connection.execution_options(no_parameters=False).execute(query, values)
            return "\n".join(str(row[-1]) for row in raw.cursor.fetchall())
    finally:
        event.remove(engine, "before_cursor_execute", ask)


def reads_the_table(found: str) -> bool:
    is_scanned = re.search(r"SCAN jobs(?! USING (COVERING )?INDEX)", found)  # on SQLite
    return "Seq Scan on jobs" in found or is_scanned is not None


def test_a_submission_reads_what_its_owner_has_waiting_or_running(history: Engine) -> None:
    values = {"owner": "anna", "low": -(1 << 47), "high": (1 << 47) - 1}
    found = plan(history, VIRTUAL_STARTS, values)
    assert "ix_jobs_active_owner_id" in found
    assert not reads_the_table(found)
    assert "uq_jobs_owner_id" not in found  # which would read the owner's history


@pytest.mark.parametrize("query", [_OF_CLIENT, _OF_VISITOR])
def test_the_limits_of_a_client_read_what_waits_or_runs(
    history: Engine, query: Select[Any]
) -> None:
    values = {"owner": "anna", "address": "home", "address_subject": "address:home"}
    found = plan(history, query, {name: values[name] for name in query.compile().params})
    assert "ix_jobs_active_owner_id" in found
    assert not reads_the_table(found)
    assert "uq_jobs_owner_id" not in found


@pytest.mark.parametrize("models", [["m"], ["m", "n"]])
def test_a_claim_reads_the_jobs_that_wait(history: Engine, models: list[str]) -> None:
    found = plan(history, CANDIDATE, {"models": models, "most_losses": MAX_LOSSES})
    assert "ix_jobs_queued" in found
    assert not reads_the_table(found)


def test_upkeep_reads_the_jobs_whose_terms_are_old(history: Engine) -> None:
    found = plan(history, STALE.order_by(Job.number.desc()).limit(5), {})
    assert "ix_jobs_stale_search" in found
    assert not reads_the_table(found)


def test_a_search_on_sqlite_walks_the_index_of_terms_backwards(history: Engine) -> None:
    if history.dialect.name != "sqlite":
        pytest.skip("PostgreSQL searches the jobs' own column")
    with history.connect() as connection:
        query = _query(connection, Filters(query="once", model="m"), EVERYTHING)
    found = plan(history, query.limit(5), {})
    assert found.startswith("SCAN jobs_search VIRTUAL TABLE")
    assert "SEARCH jobs USING INTEGER PRIMARY KEY" in found
    assert "TEMP B-TREE" not in found  # which would read every match before the first


def test_an_owners_history_is_read_from_its_index(history: Engine) -> None:
    with history.connect() as connection:
        query = _query(connection, Filters(), Sight("bert"))
    found = plan(history, query.limit(5), {})
    assert "ix_jobs_owner_id_number" in found
    assert not reads_the_table(found)
