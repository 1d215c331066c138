"""Model cards on both databases: storing by a worker, reading by the web side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import Engine, update

from tests.finetunings import CARD, CURVE, finetune_json
from textmill.core.catalog.finetunings import parse_finetuning
from textmill.core.catalog.served_models import (
    ServedModel,
    card_markdown,
    cards,
    curve_svg,
    store_served_model,
    tokenizer_json,
)
from textmill.core.database.connections import make_engine, writing
from textmill.core.database.tables import LoadedModelCard

PLAIN = ServedModel("tuned", "r1", "llama", "native", 7, 8, 9, "float32", "{}")
TUNED = replace(
    PLAIN,
    finetuning=parse_finetuning(finetune_json()),
    curve_svg=CURVE,
    card_markdown=CARD,
)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = make_engine(database_url)
    yield made
    made.dispose()


def test_the_large_texts_come_only_when_asked_for(engine: Engine) -> None:
    store_served_model(engine, TUNED)
    found = cards(engine)["tuned"]
    assert found.finetuning == TUNED.finetuning
    assert (found.tokenizer_json, found.curve_svg, found.card_markdown) == (None, "", "")
    assert (found.has_curve, found.has_text) == (True, True)
    assert tokenizer_json(engine, "tuned") == "{}"
    assert curve_svg(engine, "tuned") == CURVE
    assert card_markdown(engine, "tuned") == CARD


def test_a_tokenizer_is_sent_once_for_each_revision(engine: Engine) -> None:
    store_served_model(engine, TUNED)
    store_served_model(engine, replace(PLAIN, tokenizer_json="not sent", dtype="int8"))
    assert (tokenizer_json(engine, "tuned"), cards(engine)["tuned"].dtype) == ("{}", "int8")
    store_served_model(engine, replace(PLAIN, tokenizer_json=None))
    assert tokenizer_json(engine, "tuned") is None
    store_served_model(engine, PLAIN)
    assert tokenizer_json(engine, "tuned") == "{}"
    store_served_model(engine, replace(PLAIN, revision="r2", tokenizer_json="new"))
    assert tokenizer_json(engine, "tuned") == "new"


def test_a_model_of_that_name_without_an_origin_takes_the_place(engine: Engine) -> None:
    store_served_model(engine, TUNED)
    store_served_model(engine, PLAIN)
    assert cards(engine) == {"tuned": replace(PLAIN, tokenizer_json=None)}
    assert (curve_svg(engine, "tuned"), card_markdown(engine, "absent")) == (None, None)
    store_served_model(engine, TUNED)
    assert cards(engine)["tuned"].finetuning == TUNED.finetuning


def test_what_a_later_release_wrote_differently_is_left_out(engine: Engine) -> None:
    store_served_model(engine, TUNED)
    with writing(engine) as connection:
        connection.execute(update(LoadedModelCard).values(finetuning={"base": {"name": "x"}}))
    assert cards(engine)["tuned"].finetuning is None
    assert cards(engine)["tuned"].has_curve
