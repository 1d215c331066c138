"""Stored jobs: reading, listing, exporting, canceling and deleting them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from textmill.backend.response_models import JobPage, JobView, TraceView
from textmill.backend.serializers import job_view
from textmill.backend.services.best_effort import BestEffort
from textmill.backend.services.job_views import JobViews
from textmill.core.access.principals import LOCAL, Principal
from textmill.core.errors import NotFound
from textmill.core.events import EventBus
from textmill.core.jobs.history import MAX_LIMIT, Filters, History
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore


class JobService:
    """Reads jobs from the history and changes them through the store.

    ``hints`` bounds the calls to Redis that only speed up a change which is already committed.
    ``principal`` says what may be canceled and deleted; ``history`` shows what may be read.
    """

    def __init__(
        self,
        store: JobStore,
        history: History,
        bus: EventBus,
        views: JobViews,
        hints: BestEffort,
        principal: Principal = LOCAL,
    ) -> None:
        self._store = store
        self._history = history
        self._bus = bus
        self._views = views
        self._hints = hints
        self._principal = principal

    def seen_by(self, history: History, principal: Principal) -> JobService:
        """The same service for another history and another principal."""
        return JobService(self._store, history, self._bus, self._views, self._hints, principal)

    def record(self, job_id: str) -> JobRecord:
        """Return a job as the database has it.

        Raises:
            NotFound: no such job is stored.
        """
        return self._history.job(checked_id(job_id))

    def read(self, job_id: str) -> JobView:
        """Return a job as clients see it.

        Raises:
            NotFound: no such job is stored.
        """
        return self._views.job(self.record(job_id))

    def trace(self, job_id: str) -> TraceView:
        """Return the trace of a job: why each token was chosen.

        Raises:
            NotFound: no such job is stored, or it has no trace.
        """
        return {"job_id": job_id, "tokens": self._history.trace(checked_id(job_id))}

    def page(self, filters: Filters) -> JobPage:
        """Return a page of the history."""
        page = self._history.page(filters)
        return {"items": self._views.jobs(page.items), "next_cursor": page.next_cursor}

    def export(self, filters: Filters) -> Iterator[JobView]:
        """Return all jobs that match the filters, newest first.

        Raises:
            StorageUnavailable: reading the first job failed. It is read during the call, while the
                answer can still be an error.
        """
        jobs = self._history.export(filters)
        first = list(itertools.islice(jobs, 1))
        return (job_view(job) for job in itertools.chain(first, jobs))

    def cancel(self, job_id: str) -> JobView:
        """Cancel a job; a running one ends a moment later.

        Raises:
            NotFound: no such job is stored.
            Conflict: the job has already ended.
        """
        job = self._store.request_cancel(checked_id(job_id), principal=self._principal)
        self._hints.ask(lambda: self._bus.request_cancel(job.id))
        return self._views.job(job)

    def star(self, job_id: str, *, is_starred: bool) -> JobView:
        """Star a job, so that it does not expire, or take the star away.

        Raises:
            NotFound: no such job is stored.
        """
        job = self._store.star(checked_id(job_id), is_starred=is_starred, principal=self._principal)
        return self._views.job(job)

    def delete(self, job_id: str, reason: str = "") -> None:
        """Delete a job; a running one is canceled first. The reason goes into the audit log.

        Raises:
            NotFound: no such job is stored.
        """
        job = self._store.delete(checked_id(job_id), principal=self._principal, reason=reason)
        if job.status == "running":
            self._hints.ask(lambda: self._bus.request_cancel(job.id))
        self._hints.ask(lambda: self._bus.forget(job.id))

    def delete_all(self) -> int:
        """Delete all jobs that the history shows, as ``delete`` does; returns their number."""
        num_deleted = 0
        while jobs := self._history.page(Filters(limit=MAX_LIMIT)).items:
            for job in jobs:
                with contextlib.suppress(NotFound):  # another request deleted it
                    self.delete(job.id)
                    num_deleted += 1
        return num_deleted


def checked_id(text: str) -> str:
    """Return an id that any database accepts as a parameter.

    Raises:
        NotFound: the text cannot be an id, so nothing is stored under it.
    """
    if not 1 <= len(text) <= 64 or not text.isascii() or not text.isprintable():
        raise NotFound("Nothing is stored under that id.")
    return text
