"""Jobs in a real database, and the means to make time pass without waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import Engine, select, update

from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import Job, JobEvent
from textmill.core.jobs.history import Filters, History
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, NewJob, Origin, Outcome

settings.register_profile("textmill", deadline=None, derandomize=True, database=None)
settings.load_profile("textmill")

MODEL = "m"


@dataclass
class Bench:
    """A store with shortcuts for tests."""

    store: JobStore

    @property
    def engine(self) -> Engine:
        return self.store.engine

    def new(self, prompt: str = "once upon", model: str = MODEL, **fields: object) -> NewJob:
        parameters = {"max_new_tokens": 4, "seed": 1, "stop": [], "repetition_penalty": 1.0}
        return NewJob(model, prompt, "greedy", parameters, **fields)  # type: ignore[arg-type]

    def submit(self, owner: str = "anna", **fields: object) -> JobRecord:
        return self.store.submit(self.new(**fields), Origin(owner))  # type: ignore[arg-type]

    def claim(self, worker: str = "w1", **admitted: Any) -> JobRecord | None:
        return self.store.claim(worker, [MODEL], **admitted)

    def claimed(self, worker: str = "w1", **admitted: Any) -> JobRecord:
        job = self.claim(worker, **admitted)
        assert job is not None
        return job

    def job(self, job_id: str) -> JobRecord:
        with reading(self.engine) as connection:
            row = connection.execute(select(Job.__table__).where(Job.id == job_id)).one()
        return JobRecord.from_row(row)

    def found(self, query: str) -> set[str]:
        """The ids that a search of the history finds."""
        return {job.id for job in History(self.engine).page(Filters(query=query)).items}

    def path(self, job_id: str) -> list[tuple[str | None, str, int, str]]:
        """The job's transitions: from, to, attempt, actor."""
        query = (
            select(JobEvent.from_status, JobEvent.to_status, JobEvent.attempt, JobEvent.actor)
            .where(JobEvent.job_id == job_id)
            .order_by(JobEvent.number)
        )
        with reading(self.engine) as connection:
            return [tuple(row) for row in connection.execute(query)]  # type: ignore[misc]

    def statuses(self, job_id: str) -> list[str]:
        return [step[1] for step in self.path(job_id)]

    def set(self, job_id: str, **values: object) -> None:
        """Make time pass, or the like, for one job."""
        with writing(self.engine) as connection:
            connection.execute(update(Job).where(Job.id == job_id).values(**values))

    def expire_lease(self, job_id: str) -> None:
        self.set(job_id, lease_until=now_ms() - 1)

    def lose(self, job_id: str) -> None:
        """The worker of a running job dies, and the sweeper finds out."""
        self.expire_lease(job_id)
        self.store.sweep("sweeper")
        self.set(job_id, not_before=0)


def outcome(status: str = "succeeded", text: str = "there was", **values: object) -> Outcome:
    reason = {"succeeded": "length", "canceled": "canceled", "failed": "error"}[status]
    return Outcome(status, text, reason, 2, 4, **values)  # type: ignore[arg-type]


@pytest.fixture
def bench(database: Engine) -> Bench:
    return Bench(JobStore(database))


@pytest.fixture
def new_bench(database: Engine) -> Callable[..., Bench]:
    """A bench whose store has other limits."""
    return lambda *args, **kwargs: Bench(JobStore(database, *args, **kwargs))
