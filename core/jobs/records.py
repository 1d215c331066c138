"""Rows of the database as frozen objects, which the store and the history return."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Row

from textmill.core.database.tables import JOBS
from textmill.core.statuses import FINAL_STATUSES


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A row of ``jobs`` at the time it was read (columns: ``core.database.tables``)."""

    number: int
    id: str
    run_id: str | None
    variant_index: int | None
    sample_index: int | None
    owner_id: str
    model: str
    model_revision: str | None
    prompt: str
    strategy: str
    parameters: dict[str, Any]
    has_trace: bool
    status: str
    priority: int
    virtual_start: int
    attempt: int
    lost_count: int
    not_before: int
    deadline_at: int
    worker_id: str | None
    lease_until: int | None
    cancel_requested_at: int | None
    text: str
    finish_reason: str | None
    error_code: str | None
    error_message: str | None
    num_prompt_tokens: int | None
    num_completion_tokens: int
    created_at: int
    started_at: int | None
    first_token_at: int | None
    finished_at: int | None
    is_starred: bool
    prompt_ids: list[int] | None

    @classmethod
    def from_row(cls, row: Row[Any]) -> JobRecord:
        """Build a record from a row that contains all columns of ``jobs``."""
        columns = row._mapping
        return cls(**{name: columns[column] for name, column in _JOB_COLUMNS})

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: its status never changes again."""
        return self.status in FINAL_STATUSES

    @property
    def cursor(self) -> str:
        """The id of the event that completes this text: attempt and number of characters."""
        return f"{self.attempt}-{len(self.text)}"


# Each field with its column's name, which the result of a SELECT uses.
_JOB_COLUMNS = tuple((item.name, JOBS.c[item.name].name) for item in fields(JobRecord))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A row of ``runs`` with its jobs in the order of variants and samples."""

    id: str
    owner_id: str
    prompt: str
    created_at: int
    jobs: tuple[JobRecord, ...]

    @classmethod
    def from_rows(cls, run: Row[Any], jobs: Iterable[Row[Any]]) -> RunRecord:
        """Build a record from the row of a run and the rows of its jobs."""
        columns = run._mapping
        return cls(
            id=columns["id"],
            owner_id=columns["owner_id"],
            prompt=columns["prompt"],
            created_at=columns["created_at"],
            jobs=tuple(JobRecord.from_row(row) for row in jobs),
        )
