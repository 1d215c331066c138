"""Facts about loaded models: workers store them, the web side, which loads no model, reads them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Engine, Select, exists, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute

from textmill.core.catalog.finetunings import Finetuning, as_document, stored_finetuning
from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import LoadedModelCard


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model: its figures, and what its folder says about it.

    Attributes:
        revision: identifies the exact weights; jobs record it.
        path: ``native`` or ``generic``, the runtime that serves it.
        tokenizer_json: ``tokenizer.json``; ``None`` if the model has none, and in the results of
            ``cards``, since it has megabytes.
        finetuning: the record of a fine-tuning, if its folder has one.
        curve_svg: the chart of its training losses, from its folder.
        card_markdown: the model card of its folder. ``cards`` returns an empty text for each of
            these two that exists, and ``None`` otherwise.
        instruction_set: of the compiled kernels; ``None`` if PyTorch computes, or if a worker of
            an earlier version stored the record.
        kernels_note: the compiler that made the kernels, or why PyTorch computes.
        tokenizer_config: the chat template and the special tokens of the model's
            tokenizer_config.json; ``None`` if a worker of an earlier version stored the record.
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
    instruction_set: str | None = None
    kernels_note: str | None = None
    tokenizer_config: dict[str, Any] | None = None

    @property
    def has_curve(self) -> bool:
        """Whether the model has a chart of its training."""
        return self.curve_svg is not None

    @property
    def has_text(self) -> bool:
        """Whether the model has a model card."""
        return self.card_markdown is not None


_LARGE = ("tokenizer_json", "curve_svg", "card_markdown")
_FIGURES = [item.name for item in fields(ServedModel) if item.name not in _LARGE]


def store_served_model(engine: Engine, card: ServedModel) -> None:
    """Store a model that was just loaded, replacing an older record of the same name.

    A tokenizer that is already stored is not sent again: to bind its megabytes takes several times
    their memory, which a worker keeps.
    """
    found = None if card.finetuning is None else as_document(card.finetuning)
    values = asdict(card) | {"finetuning": found, "loaded_at": now_ms()}
    with writing(engine) as connection:
        if connection.execute(_has_tokenizer(card)).scalar_one():
            del values["tokenizer_json"]
            same = LoadedModelCard.name == card.name
            connection.execute(update(LoadedModelCard).where(same).values(values))
            return
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        statement = insert(LoadedModelCard).values(values)
        new = {name: statement.excluded[name] for name in values}
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=new))


def _has_tokenizer(card: ServedModel) -> Select[tuple[bool]]:
    """Whether the record has this tokenizer; the revision is a hash of it, among others."""
    return select(
        exists().where(
            LoadedModelCard.name == card.name,
            LoadedModelCard.revision == card.revision,
            LoadedModelCard.tokenizer_json.is_not(None),
            literal(card.tokenizer_json is not None),
        )
    )


def cards(engine: Engine) -> dict[str, ServedModel]:
    """All records by model name, without their large texts."""
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
    """The ``tokenizer.json`` of a model; ``None`` if it has none or is unknown."""
    return _text(engine, LoadedModelCard.tokenizer_json, name)


def curve_svg(engine: Engine, name: str) -> str | None:
    """The chart of a model's training; untrusted."""
    return _text(engine, LoadedModelCard.curve_svg, name)


def card_markdown(engine: Engine, name: str) -> str | None:
    """The model card of a model's folder; untrusted."""
    return _text(engine, LoadedModelCard.card_markdown, name)


def _text(engine: Engine, column: InstrumentedAttribute[str | None], name: str) -> str | None:
    query = select(column).where(LoadedModelCard.name == name)
    with reading(engine) as connection:
        return connection.execute(query).scalar_one_or_none()
