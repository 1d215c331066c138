"""The services of one web process, built on one database and one Redis.

The API and the pages use these and nothing else. They know nothing of requests and responses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from textmill.backend.services.administration import AdministrationService
from textmill.backend.services.best_effort import BestEffort
from textmill.backend.services.job_views import JobViews
from textmill.backend.services.jobs import JobService
from textmill.backend.services.models import ModelService
from textmill.backend.services.queue import QueueService
from textmill.backend.services.queue_positions import QueuePositions
from textmill.backend.services.runs import RunService
from textmill.backend.services.sharing import SharingService
from textmill.backend.services.submission import SubmissionService
from textmill.core.access.keys import KeyStore
from textmill.core.access.principals import ADMIN, Principal
from textmill.core.access.shares import ShareStore
from textmill.core.access.users import UserStore
from textmill.core.catalog.live import LiveCatalog
from textmill.core.disk import disk_check
from textmill.core.event_reader import EventReader
from textmill.core.events import EventBus
from textmill.core.jobs.history import History
from textmill.core.jobs.store import JobStore
from textmill.core.moderation import make_moderator
from textmill.core.settings import Settings
from textmill.core.tickets import TicketPublisher
from textmill.tokenizing.chat_templates import ChatTemplates


@dataclass(frozen=True, slots=True)
class Services:
    """All services, and the connections that they share.

    Attributes:
        store: writes jobs.
        history: reads jobs.
        bus: writes to Redis.
        tickets: tells workers of queued jobs; ``None`` without Redis.
        positions: positions in the queue.
        submission: accepts jobs and runs.
        jobs: reads, cancels and deletes jobs.
        runs: reads runs.
        sharing: makes and follows links for everybody.
        administration: for admins.
        models: describes models and tokenizes.
        queue: describes the queue.
        templates: renders conversations.
    """

    store: JobStore
    history: History
    bus: EventBus
    tickets: TicketPublisher | None
    positions: QueuePositions
    submission: SubmissionService
    jobs: JobService
    runs: RunService
    sharing: SharingService
    administration: AdministrationService
    models: ModelService
    queue: QueueService
    templates: ChatTemplates
    _best_effort: tuple[BestEffort, ...]

    def seen_by(self, principal: Principal) -> Services:
        """The services, restricted to what a principal may see and change."""
        if principal.kind == "local":
            return replace(
                self,
                sharing=self.sharing.seen_by(principal),
                administration=self.administration.seen_by(self.jobs, principal),
            )
        history = self.history.seen_by(principal.reads)
        jobs = self.jobs.seen_by(history, principal)
        return replace(
            self,
            history=history,
            submission=self.submission.charged_to(principal),
            jobs=jobs,
            administration=self.administration.seen_by(jobs, principal),
            sharing=self.sharing.seen_by(principal),
            runs=self.runs.seen_by(history),
            queue=self.queue if principal.may(ADMIN) else self.queue.without_hosts(),
        )

    def event_reader(self) -> EventReader:
        """Make a reader of the event streams, for the event loop of the caller."""
        return EventReader(self.bus.redis_url)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Wait for the best-effort calls that are still running, then close the connections."""
        for calls in self._best_effort:
            calls.close(timeout_seconds / len(self._best_effort))
        if self.tickets is not None:
            self.tickets.close()
        self.bus.close()
        self.templates.close()
        self.store.engine.dispose()


def make_services(
    *,
    store: JobStore,
    bus: EventBus,
    tickets: TicketPublisher | None,
    catalog: LiveCatalog,
    settings: Settings,
) -> Services:
    """Build the services."""
    engine = store.engine
    history = History(engine)
    positions = QueuePositions(engine, history)
    estimates = BestEffort("estimates")
    hints = BestEffort("hints")  # calls to Redis; a frozen Redis must not stop the estimates
    views = JobViews(positions, estimates)
    models = ModelService(engine, catalog)
    jobs = JobService(store, history, bus, views, hints)
    return Services(
        store=store,
        history=history,
        bus=bus,
        tickets=tickets,
        positions=positions,
        submission=SubmissionService(
            store, models, views, tickets, settings, moderator=make_moderator(settings)
        ),
        jobs=jobs,
        administration=AdministrationService(engine, KeyStore(engine), UserStore(engine), jobs),
        runs=RunService(history, views),
        sharing=SharingService(ShareStore(engine), history),
        models=models,
        queue=QueueService(engine, history, bus, catalog, estimates, disk_check(settings)),
        templates=ChatTemplates(),
        _best_effort=(estimates, hints),
    )
