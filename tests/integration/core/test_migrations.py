"""The migrations on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from tests.finetunings import CARD, CURVE, finetune_json
from textmill.core.catalog.finetunings import parse_finetuning
from textmill.core.catalog.served_models import ServedModel, cards, store_served_model
from textmill.core.database.connections import connecting, make_engine, reading, writing
from textmill.core.database.maintenance import renew_search
from textmill.core.jobs.history import Filters, History
from textmill.core.jobs.store import JobStore, Limits, NewJob, Origin
from textmill.migrations.upgrade import LOCK_MS, alembic_config, is_at_head, upgrade

OLD_CARD = """
    INSERT INTO model_cards (name, revision, family, path, num_parameters, context_length,
                             vocabulary_size, dtype, tokenizer_json, loaded_at)
    VALUES ('old', 'r1', 'llama', 'native', 7, 8, 9, 'float32', NULL, 0)
"""


def test_the_models_and_the_migrated_schema_agree(database_url: str) -> None:
    engine = make_engine(database_url)
    with writing(engine) as connection:
        config = alembic_config(database_url)
        config.attributes["connection"] = connection
        command.check(config)
    engine.dispose()


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    upgrade(database_url)
    assert is_at_head(database_url)


def test_downgrading_leaves_no_table_behind(database_url: str) -> None:
    engine = make_engine(database_url)
    with writing(engine) as connection:
        config = alembic_config(database_url)
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    tables = set(inspect(engine).get_table_names())
    engine.dispose()
    assert tables <= {"alembic_version"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_start_together_may_all_migrate(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
        _downgrade(url)
    code = f"from textmill.migrations.upgrade import upgrade; upgrade({url!r})"
    all_ = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in all_] == [0, 0, 0]
    assert is_at_head(url)


def test_the_way_down_and_up_again_leaves_a_database_that_works(database_url: str) -> None:
    _downgrade(database_url)
    assert not is_at_head(database_url)
    upgrade(database_url)
    engine = make_engine(database_url)
    job = JobStore(engine).submit(NewJob("m", "wonderful", "greedy", {}), Origin("anna"))
    found = History(engine).page(Filters(query="wonderful")).items
    engine.dispose()
    assert [item.id for item in found] == [job.id]


def test_a_database_of_the_first_release_keeps_its_cards_and_takes_where_models_come_from(
    database_url: str,
) -> None:
    _downgrade(database_url, "0001")
    engine = make_engine(database_url)
    with writing(engine) as connection:
        connection.execute(text(OLD_CARD))
    assert not is_at_head(database_url)
    upgrade(database_url)
    assert is_at_head(database_url)
    old = ServedModel("old", "r1", "llama", "native", 7, 8, 9, "float32", None)
    assert cards(engine) == {"old": old}
    finetuning = parse_finetuning(finetune_json())
    store_served_model(
        engine, replace(old, finetuning=finetuning, curve_svg=CURVE, card_markdown=CARD)
    )
    assert cards(engine)["old"].finetuning == finetuning
    with writing(engine) as connection:
        connection.execute(text(OLD_CARD.replace("'old'", "'older'")))  # a worker of that release
    assert cards(engine)["older"].finetuning is None
    engine.dispose()


def test_the_way_down_leaves_the_cards_as_the_first_release_had_them(database_url: str) -> None:
    engine = make_engine(database_url)
    card = ServedModel(
        "tuned", "r1", "llama", "native", 7, 8, 9, "float32", "{}",
        parse_finetuning(finetune_json()), CURVE, CARD,
    )  # fmt: skip
    store_served_model(engine, card)
    engine.dispose()
    _downgrade(database_url, "0001")
    engine = make_engine(database_url)
    columns = {column["name"] for column in inspect(engine).get_columns("model_cards")}
    with writing(engine) as connection:
        row = connection.execute(text("SELECT * FROM model_cards")).mappings().one()
    engine.dispose()
    assert not columns & {"finetuning", "curve_svg", "card_markdown"}
    assert (row["name"], row["tokenizer_json"]) == ("tuned", "{}")


# ---- PostgreSQL, with writers beside ------------------------------------------------------------

NUM_ROWS = int(os.environ.get("TEXTMILL_TEST_MIGRATION_ROWS", "20000"))
"""Rows of job_events for the test of a migration; 2000000 is the size of a busy year."""

_MIGRATION = """
import sqlalchemy as sa
from alembic import op
from textmill.migrations.indexes import create_index

revision = "9001"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
    timeouts = [op.get_bind().execute(sa.text("SHOW statement_timeout")).scalar_one()]
    op.add_column("job_events", sa.Column("note", sa.Text(), nullable=True))
    create_index("ix_job_events_at", "job_events", ["at"], where="attempt > 0")
    op.create_table("timeouts", sa.Column("value", sa.Text()))
    for value in timeouts:
        op.get_bind().execute(sa.text("INSERT INTO timeouts VALUES (:v)"), {{"v": value}})
"""


@pytest.fixture
def more_versions(tmp_path: Path) -> Path:
    """A folder with a migration that adds a column and an index to a large table."""
    folder = tmp_path / "versions"
    folder.mkdir()
    head = ScriptDirectory.from_config(alembic_config("sqlite://")).get_current_head()
    (folder / "v9001.py").write_text(_MIGRATION.format(head=head))
    return folder


class Writers:
    """Submissions on a few threads, and the duration of each."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url, pool_size=4)
        self._closing = threading.Event()
        self.seconds: list[float] = []
        self._threads = [threading.Thread(target=self._write) for _ in range(2)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _write(self) -> None:
        store = JobStore(self._engine, Limits(max_queued=1_000_000))
        while not self._closing.is_set():
            started = time.monotonic()
            store.submit(NewJob("m", "wonderful", "greedy", {}), Origin("anna"))
            self.seconds.append(time.monotonic() - started)


def test_a_large_table_is_migrated_while_others_write_and_hold_locks(
    postgres_url: str, more_versions: Path
) -> None:
    engine = make_engine(postgres_url, patience_seconds=None)
    with writing(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO job_events (job_id, attempt, to_status, actor, at) "
                "SELECT 'job-' || n, n % 3, 'running', 'w', n FROM generate_series(1, :num) AS n"
            ),
            {"num": NUM_ROWS},
        )
    with Writers(postgres_url) as writers, ThreadPoolExecutor(1) as pool:
        with reading(engine) as connection:  # a reader that takes longer than the wait for a lock
            connection.execute(text("SELECT count(*) FROM job_events"))
            migrating = pool.submit(upgrade, postgres_url, [more_versions])
            _await_tries(engine, migrating)
            num_before = len(writers.seconds)
        migrating.result(timeout=600)
    assert len(writers.seconds) > num_before > 0
    # A writer waits for at most one attempt to lock the table, and not for the index.
    assert max(writers.seconds) < LOCK_MS / 1000 + 1.5
    with reading(engine) as connection:
        assert connection.execute(text("SELECT value FROM timeouts")).scalars().all() == ["0"]
        valid = connection.execute(
            text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_job_events_at'::regclass")
        )
        assert valid.scalar_one()
    engine.dispose()


def _await_tries(engine: Engine, migrating: Future[None]) -> None:
    """Wait until the migration's first attempt to lock the table has failed."""
    query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    deadline = time.monotonic() + 60
    has_waited = False
    while True:
        assert not migrating.done()
        assert time.monotonic() < deadline
        with reading(engine) as connection:
            is_waiting = bool(connection.execute(query).scalar_one())
        if has_waited and not is_waiting:
            return
        has_waited = has_waited or is_waiting
        time.sleep(0.01)


def test_a_migration_that_was_cut_off_is_done_again(postgres_url: str, more_versions: Path) -> None:
    """CREATE INDEX CONCURRENTLY leaves an invalid index; the next attempt replaces it."""
    engine = make_engine(postgres_url, patience_seconds=None)
    with connecting(engine) as connection:
        session = connection.execution_options(isolation_level="AUTOCOMMIT")
        session.execute(text("CREATE INDEX ix_job_events_at ON job_events (number)"))
        session.execute(
            text(
                "UPDATE pg_index SET indisvalid = false "
                "WHERE indexrelid = 'ix_job_events_at'::regclass"
            )
        )
    upgrade(postgres_url, [more_versions])
    with reading(engine) as connection:
        made = connection.execute(
            text("SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_job_events_at'")
        )
        assert "(at) WHERE (attempt > 0)" in made.scalar_one()
    engine.dispose()


# A job of the previous release, without the columns and the rules of the search.
OLD_JOB = """
    INSERT INTO jobs (id, owner_id, model, prompt, strategy, parameters, has_trace, status,
                      priority, share_rank, attempt, lost_count, not_before, deadline_at, text,
                      search_text, num_completion_tokens, created_at, finished_at)
    VALUES (:id, 'anna', 'm', 'ภาษาไทยเป็นภาษา', 'greedy', '{}', false, :status, 0, 1, 0, 0, 0, 9e15,
            '', 'old', 0, 0, :finished_at)
"""
ENDED = {"status": "succeeded", "finished_at": 1}
WAITING = {"status": "queued", "finished_at": None}


def test_jobs_of_the_release_before_are_found_by_the_new_rules_when_they_have_ended(
    database_url: str,
) -> None:
    _downgrade(database_url, "0002")
    engine = make_engine(database_url)
    with writing(engine) as connection:
        connection.execute(text(OLD_JOB), {"id": "before", **ENDED})
    upgrade(database_url)
    with writing(engine) as connection:  # a web process of that release still runs
        connection.execute(text(OLD_JOB), [{"id": "beside", **ENDED}, {"id": "waits", **WAITING}])
    assert renew_search(engine) == 2
    found = History(engine).page(Filters(query="ภาษาไทย")).items
    assert {job.id for job in found} == {"before", "beside"}
    job = JobStore(engine).claim("w", ["m"])
    engine.dispose()
    assert job is not None
    assert job.id == "waits"


def test_the_indexes_of_a_table_with_rows_are_made_and_can_be_used(postgres_url: str) -> None:
    _downgrade(postgres_url, "0002")
    engine = make_engine(postgres_url)
    with writing(engine) as connection:
        connection.execute(text(OLD_JOB), {"id": "before", **ENDED})
        # The state after an attempt that was interrupted before the version was written.
        connection.execute(text("CREATE INDEX ix_jobs_stale_search ON jobs (number)"))
        connection.execute(text("ALTER TABLE jobs ADD COLUMN search_rules INTEGER"))
    upgrade(postgres_url)
    valid = """
        SELECT relname FROM pg_index JOIN pg_class ON indexrelid = oid
        WHERE indisvalid AND indpred IS NOT NULL
    """
    with writing(engine) as connection:
        names = set(connection.execute(text(valid)).scalars())
    engine.dispose()
    assert {"ix_jobs_active_owner_id", "ix_jobs_stale_search"} <= names


def _downgrade(url: str, revision: str = "base") -> None:
    engine = make_engine(url)
    with writing(engine) as connection:
        config = alembic_config(url)
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()
