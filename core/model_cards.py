"""What workers found out about the models they loaded, for a web side that never loads one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from core.db import now_ms, reading, writing
from core.models import LoadedModelCard


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A loaded model in figures.

    Attributes:
        revision: stands for these very weights; texts name it.
        path: ``native`` or ``generic``, the runtime that serves it.
        tokenizer_json: ``tokenizer.json``; ``None`` where the model has none, and in what
            ``cards`` returns, since it has megabytes.
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


_FIGURES = [item.name for item in fields(ModelCard) if item.name != "tokenizer_json"]


def register_card(engine: Engine, card: ModelCard) -> None:
    """Store the card of a model that was just loaded, in place of an older one of its name."""
    values = asdict(card) | {"loaded_at": now_ms()}
    with writing(engine) as connection:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(
            insert(LoadedModelCard)
            .values(values)
            .on_conflict_do_update(index_elements=["name"], set_=values)
        )


def cards(engine: Engine) -> dict[str, ModelCard]:
    """Every card by its model's name, without the tokenizers."""
    query = select(*(getattr(LoadedModelCard, name) for name in _FIGURES))
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return {row.name: ModelCard(**row._mapping, tokenizer_json=None) for row in rows}


def tokenizer_json(engine: Engine, name: str) -> str | None:
    """The tokenizer of one model, if there is a card and it has one."""
    query = select(LoadedModelCard.tokenizer_json).where(LoadedModelCard.name == name)
    with reading(engine) as connection:
        return connection.execute(query).scalar_one_or_none()
