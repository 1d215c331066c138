"""Stored runs: reading a run and its jobs."""

from __future__ import annotations

from textmill.backend.response_models import RunView
from textmill.backend.services.job_views import JobViews
from textmill.backend.services.jobs import checked_id
from textmill.core.jobs.history import History
from textmill.core.jobs.records import JobRecord


class RunService:
    """Reads runs from the history."""

    def __init__(self, history: History, views: JobViews) -> None:
        self._history = history
        self._views = views

    def seen_by(self, history: History) -> RunService:
        """The same service for another history."""
        return RunService(history, self._views)

    def records(self, run_id: str) -> list[JobRecord]:
        """Return the jobs of a run as the database has them.

        Raises:
            NotFound: no such run is stored.
        """
        return list(self._history.run(checked_id(run_id)).jobs)

    def read(self, run_id: str) -> RunView:
        """Return a run as clients see it.

        Raises:
            NotFound: no such run is stored.
        """
        return self._views.run(self._history.run(checked_id(run_id)))
