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


def _downgrade(url: str, revision: str = "base") -> None:
    engine = make_engine(url)
    with writing(engine) as connection:
        config = alembic_config(url)
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()
