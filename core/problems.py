"""Problems of a running product: why a model, the models file or a worker is left out.

Workers and the supervisor of ``up`` report them; the web side and ``textmill doctor`` show them,
possibly on another machine. A problem that is not reported again expires after a while, so that
reports of a machine that is gone disappear.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import Problem

Kind = Literal["model", "models_file", "worker", "disk"]
KINDS: tuple[Kind, ...] = get_args(Kind)
REMEMBERED_SECONDS = 900.0  # a model is tried again, and reported again, after half of this
MAX_REASON_CHARACTERS = 600
DISK_SENTENCE = "The disk is nearly full: no new jobs are accepted; stored ones can be read."
MODELS_FILE = "models file"  # the name in a host's one problem of that kind


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a problem.

    Attributes:
        host: the machine that has it.
        kind: one of ``KINDS``.
        name: of the model or the worker.
    """

    host: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class SeenProblem:
    """A problem as it was last reported; ``at`` is in milliseconds by the database's clock."""

    host: str
    kind: str
    name: str
    reason: str
    at: int


def report(engine: Engine, subject: Subject, reason: str, seconds: float) -> None:
    """Store why a subject is left out; the report expires after ``seconds``."""
    fresh = {
        "reason": reason.replace("\0", "")[:MAX_REASON_CHARACTERS],
        "at": now_ms(),
        "until": now_ms() + int(seconds * 1000),
    }
    with writing(engine) as connection:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(
            insert(Problem)
            .values(**asdict(subject), **fresh)
            .on_conflict_do_update(index_elements=["host", "kind", "name"], set_=fresh)
        )
        connection.execute(delete(Problem).where(Problem.until < now_ms()))


def solve(engine: Engine, subject: Subject) -> None:
    """Delete the problem of a subject, if there is one."""
    same = (
        (Problem.host == subject.host)
        & (Problem.kind == subject.kind)
        & (Problem.name == subject.name)
    )
    with reading(engine) as connection:
        if connection.execute(select(Problem.name).where(same)).first() is None:
            return  # the usual case, which must not cost a write
    with writing(engine) as connection:
        connection.execute(delete(Problem).where(same))


def problems(engine: Engine) -> list[SeenProblem]:
    """The problems that have not expired."""
    columns = (Problem.host, Problem.kind, Problem.name, Problem.reason, Problem.at)
    query = select(*columns).where(Problem.until >= now_ms()).order_by(*columns[:3])
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return [SeenProblem(**row) for row in rows]


def in_words(kind: str, name: str, reason: str) -> str:
    """A problem as one or two sentences."""
    if kind == "model":
        return f"The model {name} is left out: {reason}"
    return f"The process {name} {reason}" if kind == "worker" else reason
