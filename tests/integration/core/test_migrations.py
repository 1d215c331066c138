"""The migrations on both databases."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, text

from core.db import make_engine, writing
from core.finetuning import parse_finetuning
from core.history import Filters, History
from core.jobs import JobStore, NewJob, Origin
from core.model_cards import ModelCard, cards, register_card
from core.upkeep import renew_search
from migrations.upgrade import alembic_config, is_at_head, upgrade
from tests.finetunings import CARD, CURVE, finetune_json

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
    code = f"from migrations.upgrade import upgrade; upgrade({url!r})"
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
    old = ModelCard("old", "r1", "llama", "native", 7, 8, 9, "float32", None)
    assert cards(engine) == {"old": old}
    finetuning = parse_finetuning(finetune_json())
    register_card(engine, replace(old, finetuning=finetuning, curve_svg=CURVE, card_markdown=CARD))
    assert cards(engine)["old"].finetuning == finetuning
    with writing(engine) as connection:
        connection.execute(text(OLD_CARD.replace("'old'", "'older'")))  # a worker of that release
    assert cards(engine)["older"].finetuning is None
    engine.dispose()


def test_the_way_down_leaves_the_cards_as_the_first_release_had_them(database_url: str) -> None:
    engine = make_engine(database_url)
    card = ModelCard(
        "tuned", "r1", "llama", "native", 7, 8, 9, "float32", "{}",
        parse_finetuning(finetune_json()), CURVE, CARD,
    )  # fmt: skip
    register_card(engine, card)
    engine.dispose()
    _downgrade(database_url, "0001")
    engine = make_engine(database_url)
    columns = {column["name"] for column in inspect(engine).get_columns("model_cards")}
    with writing(engine) as connection:
        row = connection.execute(text("SELECT * FROM model_cards")).mappings().one()
    engine.dispose()
    assert not columns & {"finetuning", "curve_svg", "card_markdown"}
    assert (row["name"], row["tokenizer_json"]) == ("tuned", "{}")


# A job of the release before: it knows neither the columns nor the rules of the search.
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
    job = JobStore(engine).claim("w", ["m"], is_idle=True)
    engine.dispose()
    assert job is not None
    assert job.id == "waits"


def test_the_indexes_of_a_table_with_rows_are_made_and_can_be_used(postgres_url: str) -> None:
    _downgrade(postgres_url, "0002")
    engine = make_engine(postgres_url)
    with writing(engine) as connection:
        connection.execute(text(OLD_JOB), {"id": "before", **ENDED})
        # As a try leaves it that was cut off before the version was written.
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
