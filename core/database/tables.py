"""The tables. What SQLite and PostgreSQL each add (search, partial indexes) is in the migrations.

Instants are whole milliseconds since 1970 (UTC) by the database's clock: one type, one arithmetic
and one order on both databases.
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
    literal_column,
    or_,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from textmill.core.statuses import STATUSES

# SQLite numbers rows by itself only in an INTEGER PRIMARY KEY.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")
_QUEUED = text("status = 'queued'")
_RUNNING = text("status = 'running'")
_ACTIVE = text("status = 'queued' OR status = 'running'")
_STALE_SEARCH = text("search_rules IS NULL AND finished_at IS NOT NULL")


class Base(DeclarativeBase):
    """Root of the tables; constraints are named so that migrations can speak of them."""

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
    """One text to be written. ``core.jobs.store.JobStore`` alone writes ``status``.

    ``attempt`` is the fence: it only ever grows, and a worker may write only under the attempt it
    claimed. ``number`` gives the history its order and the search its row.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner_id", "idempotency_key"),
        CheckConstraint(f"status IN ({', '.join(map(repr, STATUSES))})", name="status"),
        Index(
            "ix_jobs_queued",
            "model",
            "share_rank",
            "number",
            sqlite_where=_QUEUED,
            postgresql_where=_QUEUED,
        ),
        Index("ix_jobs_running", "lease_until", sqlite_where=_RUNNING, postgresql_where=_RUNNING),
        Index(
            "ix_jobs_active_owner_id",
            "owner_id",
            "share_rank",
            sqlite_where=_ACTIVE,
            postgresql_where=_ACTIVE,
        ),
        Index(
            "ix_jobs_stale_search",
            "number",
            sqlite_where=_STALE_SEARCH,
            postgresql_where=_STALE_SEARCH,
        ),
        Index("ix_jobs_run_id", "run_id", "number"),
        Index("ix_jobs_status", "status", "number"),
        Index("ix_jobs_finished_at", "finished_at"),
        Index("ix_jobs_created_at", "created_at"),
        {"sqlite_autoincrement": True},  # a deleted job's number, a cursor, is never given again
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
    # Not used: kept for the release before, which orders by it.
    priority: Mapped[int] = mapped_column(Integer, default=0)
    # Start-time fair queueing: see core.jobs.admission.
    share_rank: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(Integer)
    lost_count: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[int] = mapped_column(BigInteger)
    deadline_at: Mapped[int] = mapped_column(BigInteger)
    worker_id: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[int | None] = mapped_column(BigInteger)
    cancel_requested_at: Mapped[int | None] = mapped_column(BigInteger)

    text: Mapped[str] = mapped_column(Text)
    # The terms of prompt and text, cut by core.jobs.search, one space between.
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
    # What a search within scripts without spaces compares; empty in a row of the release before.
    search_runs: Mapped[str] = mapped_column(Text, server_default="")
    # The version of the rules of core.jobs.search that cut the terms of a finished job. Null: not
    # finished, or cut by the release before; core.database.maintenance cuts the latter anew.
    search_rules: Mapped[int | None] = mapped_column(Integer)


class JobEvent(Base):
    """One transition of a job, written in the transaction that made it."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id", "job_id", "number"),)

    number: Mapped[int] = mapped_column(RowNumber, Identity(), primary_key=True, autoincrement=True)
    # No foreign key: the account of what happened outlives a deleted job.
    job_id: Mapped[str] = mapped_column(String(36))
    attempt: Mapped[int] = mapped_column(Integer)
    from_status: Mapped[str | None] = mapped_column(String(16))
    to_status: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(80))
    at: Mapped[int] = mapped_column(BigInteger)


class JobTrace(Base):
    """Why each token of a job was chosen, as JSON; apart, since it is large and seldom read."""

    __tablename__ = "job_traces"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tokens: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class Worker(Base):
    """A worker process and what it last said of itself."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    models: Mapped[list[str]] = mapped_column(JSON)
    num_slots: Mapped[int] = mapped_column(Integer)
    num_active: Mapped[int] = mapped_column(Integer)
    tokens_per_second: Mapped[float] = mapped_column(Float)
    started_at: Mapped[int] = mapped_column(BigInteger)
    last_seen: Mapped[int] = mapped_column(BigInteger, index=True)


class LoadedModelCard(Base):
    """What a worker found out about a model when it loaded it; the web side never loads one."""

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
    # tokenizer.json, so that the web side counts tokens as the worker does; null: it has none.
    tokenizer_json: Mapped[str | None] = mapped_column(Text)
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


# For the hot paths: the detour over the mapped class was a fifth of what a submission cost.
JOBS = cast(Table, Job.__table__)
JOB_EVENTS = cast(Table, JobEvent.__table__)

# Literals, not parameters: a partial index serves only a query that names its status.
IS_QUEUED = Job.status == literal_column("'queued'")
IS_RUNNING = Job.status == literal_column("'running'")
IS_ACTIVE = or_(IS_QUEUED, IS_RUNNING)

CLAIM_ORDER = (Job.share_rank, Job.number)
"""Which of a model's waiting jobs is the next: by fair share, then age."""
