"""What workers found out about the models they loaded, for a web side that never loads one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute

from textmill.core.catalog.finetunings import Finetuning, as_document, stored_finetuning
from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import LoadedModelCard


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model in figures.

    Attributes:
        revision: stands for these very weights; texts name it.
        path: ``native`` or ``generic``, the runtime that serves it.
        tokenizer_json: ``tokenizer.json``; ``None`` where the model has none, and in what
            ``cards`` returns, since it has megabytes.
        finetuning: where a fine-tuned model comes from, if its folder says so.
        curve_svg: the losses of its training, drawn by whoever made the folder.
        card_markdown: what its folder tells readers. Of these two ``cards`` returns empty texts
            where there are some, and ``None`` where there are none.
    """

    name: str
    revision: str
    family: str
    path: str
    num_parameters: int
    context_length: int
    vocabulary_size: int
    dtype: str
    tokenizer_json: str | None
    finetuning: Finetuning | None = None
    curve_svg: str | None = None
    card_markdown: str | None = None

    @property
    def has_curve(self) -> bool:
        """Whether its curve can be asked for."""
        return self.curve_svg is not None

    @property
    def has_text(self) -> bool:
        """Whether its card for readers can be asked for."""
        return self.card_markdown is not None


_LARGE = ("tokenizer_json", "curve_svg", "card_markdown")
_FIGURES = [item.name for item in fields(ServedModel) if item.name not in _LARGE]


def store_served_model(engine: Engine, card: ServedModel) -> None:
    """Store the card of a model that was just loaded, in place of an older one of its name."""
    found = None if card.finetuning is None else as_document(card.finetuning)
    values = asdict(card) | {"finetuning": found, "loaded_at": now_ms()}
    with writing(engine) as connection:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(
            insert(LoadedModelCard)
            .values(values)
            .on_conflict_do_update(index_elements=["name"], set_=values)
        )


def cards(engine: Engine) -> dict[str, ServedModel]:
    """Every card by its model's name, without the large texts."""
    query = select(
        *(getattr(LoadedModelCard, name) for name in _FIGURES),
        LoadedModelCard.curve_svg.is_not(None).label("has_curve"),
        LoadedModelCard.card_markdown.is_not(None).label("has_text"),
    )
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return {row["name"]: _without_texts(dict(row)) for row in rows}


def _without_texts(row: dict[str, Any]) -> ServedModel:
    has_curve, has_text = row.pop("has_curve"), row.pop("has_text")
    return ServedModel(
        **row | {"finetuning": stored_finetuning(row["finetuning"])},
        tokenizer_json=None,
        curve_svg="" if has_curve else None,
        card_markdown="" if has_text else None,
    )


def tokenizer_json(engine: Engine, name: str) -> str | None:
    """The tokenizer of one model, if there is a card and it has one."""
    return _text(engine, LoadedModelCard.tokenizer_json, name)


def curve_svg(engine: Engine, name: str) -> str | None:
    """The losses of one model's training, drawn; not to be trusted."""
    return _text(engine, LoadedModelCard.curve_svg, name)


def card_markdown(engine: Engine, name: str) -> str | None:
    """What one model's folder tells readers; not to be trusted."""
    return _text(engine, LoadedModelCard.card_markdown, name)


def _text(engine: Engine, column: InstrumentedAttribute[str | None], name: str) -> str | None:
    query = select(column).where(LoadedModelCard.name == name)
    with reading(engine) as connection:
        return connection.execute(query).scalar_one_or_none()
