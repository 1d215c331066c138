"""The tables. The migrations add what differs between SQLite and PostgreSQL, such as the search.

Instants are whole milliseconds since 1970 (UTC) by the database's clock, so that type, arithmetic
and order are the same on both databases.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    literal_column,
    or_,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from textmill.core.statuses import STATUSES

# SQLite assigns row numbers only to an INTEGER PRIMARY KEY.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")
_QUEUED = text("status = 'queued'")
_RUNNING = text("status = 'running'")
_ACTIVE = text("status = 'queued' OR status = 'running'")
_STARRED = text("is_starred")
_STALE_SEARCH = text("search_rules IS NULL AND finished_at IS NOT NULL")


class Base(DeclarativeBase):
    """Base class of the tables; constraints have names, by which migrations refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Run(Base):
    """One prompt given to several variants; its jobs carry its id."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("owner_id", "idempotency_key"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    owner_id: Mapped[str] = mapped_column(String(64))
    prompt: Mapped[str] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)


class Job(Base):
    """One completion to generate. Only ``core.jobs.store.JobStore`` writes ``status``.

    ``attempt`` is the fence: it only increases, and a worker may write only under the attempt that
    it claimed. ``number`` orders the history and identifies the row in the search index.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner_id", "idempotency_key"),
        CheckConstraint(f"status IN ({', '.join(map(repr, STATUSES))})", name="status"),
        Index(
            "ix_jobs_queued",
            "model",
            "virtual_start",
            "number",
            sqlite_where=_QUEUED,
            postgresql_where=_QUEUED,
        ),
        Index("ix_jobs_running", "lease_until", sqlite_where=_RUNNING, postgresql_where=_RUNNING),
        Index(
            "ix_jobs_active_owner_id",
            "owner_id",
            "virtual_start",
            sqlite_where=_ACTIVE,
            postgresql_where=_ACTIVE,
        ),
        Index(
            "ix_jobs_stale_search",
            "number",
            sqlite_where=_STALE_SEARCH,
            postgresql_where=_STALE_SEARCH,
        ),
        Index("ix_jobs_owner_id_number", "owner_id", "number"),
        Index(
            "ix_jobs_starred_owner_id",
            "owner_id",
            "number",
            sqlite_where=_STARRED,
            postgresql_where=_STARRED,
        ),
        Index("ix_jobs_run_id", "run_id", "number"),
        Index("ix_jobs_status", "status", "number"),
        Index("ix_jobs_finished_at", "finished_at"),
        Index("ix_jobs_created_at", "created_at"),
        {"sqlite_autoincrement": True},  # numbers are cursors, and are not reused
    )

    number: Mapped[int] = mapped_column(RowNumber, Identity(), primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    variant_index: Mapped[int | None] = mapped_column(Integer)
    sample_index: Mapped[int | None] = mapped_column(Integer)
    owner_id: Mapped[str] = mapped_column(String(64))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[str | None] = mapped_column(String(64))

    model: Mapped[str] = mapped_column(String(64))
    model_revision: Mapped[str | None] = mapped_column(String(64))
    prompt: Mapped[str] = mapped_column(Text)
    strategy: Mapped[str] = mapped_column(String(16))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    has_trace: Mapped[bool] = mapped_column(Boolean)

    status: Mapped[str] = mapped_column(String(16))
    # virtual_start contains it; earlier releases order by it.
    priority: Mapped[int] = mapped_column(Integer, default=0)
    # Start-time fair queueing: see core.jobs.admission. The column's name is that of the first
    # release, which processes of the previous release use (docs/decisions/0004).
    virtual_start: Mapped[int] = mapped_column("share_rank", BigInteger, key="virtual_start")
    attempt: Mapped[int] = mapped_column(Integer)
    lost_count: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[int] = mapped_column(BigInteger)
    deadline_at: Mapped[int] = mapped_column(BigInteger)
    worker_id: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[int | None] = mapped_column(BigInteger)
    cancel_requested_at: Mapped[int | None] = mapped_column(BigInteger)

    text: Mapped[str] = mapped_column(Text)
    # The terms of prompt and text by core.jobs.search, separated by spaces.
    search_text: Mapped[str] = mapped_column(Text)
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    num_prompt_tokens: Mapped[int | None] = mapped_column(Integer)
    num_completion_tokens: Mapped[int] = mapped_column(Integer)

    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    first_token_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    # The runs of prompt and text by core.jobs.search; empty in rows of the previous release.
    search_runs: Mapped[str] = mapped_column(Text, server_default="")
    # The version of the rules by which core.jobs.search indexed a finished job. Null: not finished,
    # or indexed by the previous release; core.database.maintenance indexes the latter again.
    search_rules: Mapped[int | None] = mapped_column(Integer)
    # A keyed hash of the address of the visitor who sent it; null for everybody else.
    address_id: Mapped[str | None] = mapped_column(String(32))
    # The prompt as token ids, if the client sent those; ``prompt`` is then their text.
    prompt_ids: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    # Whether the owner marked it; such a job does not expire.
    is_starred: Mapped[bool] = mapped_column(Boolean, server_default=false())


class JobEvent(Base):
    """One transition of a job, written in the same transaction."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id", "job_id", "number"),)

    number: Mapped[int] = mapped_column(RowNumber, Identity(), primary_key=True, autoincrement=True)
    # No foreign key: the events of a deleted job are kept.
    job_id: Mapped[str] = mapped_column(String(36))
    attempt: Mapped[int] = mapped_column(Integer)
    from_status: Mapped[str | None] = mapped_column(String(16))
    to_status: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(80))
    at: Mapped[int] = mapped_column(BigInteger)


class JobTrace(Base):
    """Why each token of a job was chosen, as JSON; a separate table, because it is large."""

    __tablename__ = "job_traces"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tokens: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class Worker(Base):
    """A worker process and its last report."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    models: Mapped[list[str]] = mapped_column(JSON)
    num_slots: Mapped[int] = mapped_column(Integer)
    num_active: Mapped[int] = mapped_column(Integer)
    tokens_per_second: Mapped[float] = mapped_column(Float)
    started_at: Mapped[int] = mapped_column(BigInteger)
    last_seen: Mapped[int] = mapped_column(BigInteger, index=True)


class LoadedModelCard(Base):
    """The properties of a model, which a worker found when it loaded the model."""

    __tablename__ = "model_cards"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    revision: Mapped[str] = mapped_column(String(64))
    family: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(16))
    num_parameters: Mapped[int] = mapped_column(BigInteger)
    context_length: Mapped[int] = mapped_column(Integer)
    vocabulary_size: Mapped[int] = mapped_column(Integer)
    dtype: Mapped[str] = mapped_column(String(16))
    # Of the compiled kernels; null: PyTorch computes. The note names the compiler, or the reason.
    instruction_set: Mapped[str | None] = mapped_column(String(16))
    kernels_note: Mapped[str | None] = mapped_column(Text)
    # tokenizer.json, with which the web side counts tokens as the worker does; null: none.
    tokenizer_json: Mapped[str | None] = mapped_column(Text)
    # Of tokenizer_config.json: the chat template and the special tokens; null: not known.
    tokenizer_config: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    loaded_at: Mapped[int] = mapped_column(BigInteger)
    # The fine-tuning record of the model's folder (core.catalog.finetunings). Null: none.
    finetuning: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    curve_svg: Mapped[str | None] = mapped_column(Text)
    card_markdown: Mapped[str | None] = mapped_column(Text)


class Problem(Base):
    """Why a model, the models file or a worker is left out; see ``core.problems``."""

    __tablename__ = "problems"

    host: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[int] = mapped_column(BigInteger)


# For frequent statements: the mapped classes took a fifth of a submission's time.
JOBS = cast(Table, Job.__table__)
JOB_EVENTS = cast(Table, JobEvent.__table__)

# Literals, not parameters: a partial index serves only queries that contain its status.
IS_QUEUED = Job.status == literal_column("'queued'")
IS_RUNNING = Job.status == literal_column("'running'")
IS_ACTIVE = or_(IS_QUEUED, IS_RUNNING)

CLAIM_ORDER = (Job.virtual_start, Job.number)
"""The order in which a model's queued jobs are claimed: fair share, then age."""
