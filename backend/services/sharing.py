"""Links that show a job or run to everybody who has them."""

from __future__ import annotations

from dataclasses import dataclass

from textmill.backend.response_models import JobView, ShareView
from textmill.backend.serializers import instant, job_view
from textmill.backend.services.jobs import checked_id
from textmill.backend.share_requests import ShareRequest
from textmill.core.access.principals import LOCAL, Principal
from textmill.core.access.shares import Kind, ShareRecord, ShareStore
from textmill.core.jobs.history import History

SHARED_PATH = "/shared/"
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class SharedView:
    """What a link shows, without any id of it.

    Attributes:
        prompt: of the job or run.
        jobs: one, or those of the run.
        is_indexed: whether search engines may show it.
    """

    prompt: str
    jobs: list[JobView]
    is_indexed: bool


class SharingService:
    """Makes, revokes and follows links.

    ``history`` is unrestricted: it is only asked for what a link names.
    """

    def __init__(self, shares: ShareStore, history: History, principal: Principal = LOCAL) -> None:
        self._shares = shares
        self._history = history
        self._principal = principal

    def seen_by(self, principal: Principal) -> SharingService:
        """The same service for another principal."""
        return SharingService(self._shares, self._history, principal)

    def share(self, kind: Kind, object_id: str, asked: ShareRequest) -> ShareView:
        """Make the link of a job or run, or change its end.

        Raises:
            NotFound: there is none that the principal may share.
        """
        days = asked.expires_days
        record = self._shares.share(
            kind,
            checked_id(object_id),
            self._principal,
            expires_seconds=None if days is None else days * DAY_SECONDS,
            is_indexed=bool(asked.index),
        )
        return _view(record)

    def unshare(self, kind: Kind, object_id: str) -> None:
        """Revoke the link of a job or run, if it has one.

        Raises:
            NotFound: there is none that the principal may share.
        """
        self._shares.unshare(kind, checked_id(object_id), self._principal)

    def link_of(self, object_id: str) -> ShareView | None:
        """The link of a job or run that the principal sees; ``None`` if it has none."""
        record = self._shares.of(checked_id(object_id))
        return None if record is None else _view(record)

    def shared(self, token: str) -> SharedView:
        """What a link shows.

        Raises:
            NotFound: there is no such link, or it has ended.
        """
        record = self._shares.find(checked_id(token))
        if record.kind == "job":
            jobs = [self._history.job(record.object_id)]
            return SharedView(jobs[0].prompt, [job_view(jobs[0])], record.is_indexed)
        run = self._history.run(record.object_id)
        return SharedView(run.prompt, [job_view(job) for job in run.jobs], record.is_indexed)


def _view(record: ShareRecord) -> ShareView:
    return {
        "url": SHARED_PATH + record.token,
        "expires_at": None if record.expires_at is None else instant(record.expires_at),
        "index": record.is_indexed,
    }
