"""What the API and the pages both do: validate, store, publish, read.

All answers are plain dicts as the HTTP contract has them. Knows nothing of requests and responses.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Engine

from textmill.backend.openapi import openapi_document
from textmill.backend.request_models import (
    JobRequestBase,
    ModelLimits,
    RequestContext,
    TokenizeRequest,
    field_errors,
    parse_job_request,
    parse_run_request,
)
from textmill.backend.serializers import (
    Document,
    base_names,
    instant,
    job_document,
    model_document,
    run_document,
    strategy_document,
)
from textmill.backend.services.best_effort import BestEffort
from textmill.backend.services.queue_positions import UNKNOWN_POSITION, QueuePositions
from textmill.backend.services.tokenizing import TokenizerCache
from textmill.core.catalog.live import LiveCatalog
from textmill.core.catalog.models_file import Catalog
from textmill.core.catalog.served_models import (
    ServedModel,
    card_markdown,
    cards,
    curve_svg,
    tokenizer_json,
)
from textmill.core.database.connections import acquire_in_time
from textmill.core.database.errors import TEMPORARY_RETRY_SECONDS
from textmill.core.errors import FieldError, NotFound, StorageUnavailable, ValidationFailed
from textmill.core.event_reader import EventReader
from textmill.core.events import EventBus
from textmill.core.failpoints import reach
from textmill.core.jobs.history import Filters, History
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.jobs.store import JobStore, NewJob, Origin
from textmill.core.problems import MODELS_FILE, SeenProblem, problems
from textmill.core.strategies import STRATEGIES
from textmill.core.tickets import TicketPublisher
from textmill.core.workers import SeenWorker, seen_workers, worker_host
from textmill.tokenizing.safe_tokenizer import TokenizerFault

CARDS_SECONDS = 2.0  # how long a newly loaded model may stay unknown to validation
log = structlog.get_logger(__name__)
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


class Services:
    """The product's actions, on one database and one Redis."""

    def __init__(
        self,
        *,
        store: JobStore,
        bus: EventBus,
        tickets: TicketPublisher | None,
        catalog: LiveCatalog,
    ) -> None:
        """Keep what the actions work on."""
        self.store = store
        self.bus = bus
        self.history = History(store.engine)
        self._line = QueuePositions(store.engine, self.history)
        self._estimates = BestEffort("estimates")
        self._hints = BestEffort("hints")  # to Redis; its own breaker must not stop the estimates
        self._tickets = tickets
        self._live_catalog = catalog
        self._tokenizers = TokenizerCache()
        self._cards: dict[str, ServedModel] = {}
        self._cards_until = 0.0
        self._lock = threading.Lock()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Wait for the estimates and hints that still run, and close the connections."""
        self._estimates.close(timeout_seconds / 2)
        self._hints.close(timeout_seconds / 2)
        if self._tickets is not None:
            self._tickets.close()
        self.bus.close()
        self.store.engine.dispose()

    # ---- submit, cancel, delete -------------------------------------------------------------

    def submit_job(
        self, payload: object, *, owner_id: str, idempotency_key: str | None = None
    ) -> Document:
        """Store a job and say so to the workers.

        Raises:
            ValidationFailed, QueueFull, RateLimited: nothing was stored.
        """
        key = _checked_key(idempotency_key)
        context = self._context()
        request = parse_job_request(payload, context)
        new = self._new_job(request, request.resolved_parameters(), context)
        job = self.store.submit(new, Origin(owner_id, key, _hash(payload, key)))
        self._publish(job)
        return self._document(job)

    def submit_run(
        self, payload: object, *, owner_id: str, idempotency_key: str | None = None
    ) -> Document:
        """Store a run with all its jobs, or nothing.

        Raises:
            ValidationFailed, QueueFull, RateLimited: nothing was stored.
        """
        key = _checked_key(idempotency_key)
        context = self._context()
        planned = parse_run_request(payload, context)
        jobs = [
            self._new_job(
                plan.request,
                plan.parameters,
                context,
                variant_index=plan.variant_index,
                sample_index=plan.sample_index,
            )
            for plan in planned
        ]
        run = self.store.submit_run(
            jobs[0].prompt, jobs, Origin(owner_id, key, _hash(payload, key))
        )
        for job in run.jobs:
            self._publish(job)
        return self._run_document(run)

    def cancel_job(self, job_id: str) -> Document:
        """Cancel a job.

        Raises:
            NotFound, Conflict: there is none, or it has ended.
        """
        job = self.store.request_cancel(_checked_id(job_id))
        self._hints.ask(lambda: self.bus.request_cancel(job.id))
        return self._document(job)

    def delete_job(self, job_id: str) -> None:
        """Remove a job; one that runs is canceled first.

        Raises:
            NotFound: there is no such job.
        """
        job = self.store.delete(_checked_id(job_id))
        if job.status == "running":
            self._hints.ask(lambda: self.bus.request_cancel(job.id))
        self._hints.ask(lambda: self.bus.forget(job.id))

    # ---- read -------------------------------------------------------------------------------

    def job(self, job_id: str) -> JobRecord:
        """A job's row.

        Raises:
            NotFound: there is no such job.
        """
        return self.history.job(_checked_id(job_id))

    def run_jobs(self, run_id: str) -> list[JobRecord]:
        """The rows of a run's jobs.

        Raises:
            NotFound: there is no such run.
        """
        return list(self.history.run(_checked_id(run_id)).jobs)

    def get_job(self, job_id: str) -> Document:
        """A job as it stands.

        Raises:
            NotFound: there is no such job.
        """
        return self._document(self.job(job_id))

    def get_run(self, run_id: str) -> Document:
        """A run as it stands.

        Raises:
            NotFound: there is no such run.
        """
        return self._run_document(self.history.run(_checked_id(run_id)))

    def trace(self, job_id: str) -> Document:
        """Why each token was chosen.

        Raises:
            NotFound: there is no such job, or it has no trace.
        """
        return {"job_id": job_id, "tokens": self.history.trace(_checked_id(job_id))}

    def list_jobs(self, filters: Filters) -> Document:
        """A page of the history."""
        page = self.history.page(filters)
        return {
            "items": self._documents(page.items),
            "next_cursor": page.next_cursor,
        }

    def export(self, filters: Filters) -> Iterator[Document]:
        """All jobs that the filters pick, newest first.

        Raises:
            StorageUnavailable: at the call, which reads the first batch, so that the answer can
                still be an error.
        """
        jobs = self.history.export(filters)
        first = list(itertools.islice(jobs, 1))
        return (job_document(job) for job in itertools.chain(first, jobs))

    def list_models(self) -> list[Document]:
        """The models of the models file."""
        known = self._known_cards()
        workers = self._workers()
        catalog = self._catalog
        default = catalog.default.name
        bases = base_names(catalog, known)
        return [
            model_document(
                spec,
                known.get(spec.name),
                sum(spec.name in worker.models for worker in workers),
                is_default=spec.name == default,
                base_model=bases.get(spec.name),
            )
            for spec in catalog
        ]

    def model_curve(self, name: str) -> str:
        """The losses of a model's training as an SVG that is not to be trusted.

        Raises:
            NotFound: there is no such model, or it has none.
        """
        return self._model_text(name, curve_svg, "loss curve")

    def model_card(self, name: str) -> str:
        """What a model's folder tells readers, as Markdown that is not to be trusted.

        Raises:
            NotFound: there is no such model, or it has none.
        """
        return self._model_text(name, card_markdown, "card")

    def _model_text(self, name: str, read: Callable[[Engine, str], str | None], what: str) -> str:
        text = read(self.store.engine, name) if name in self._catalog.names else None
        if text is None:
            raise NotFound(f"There is no model of that name, or it has no {what}.")
        return text

    def has_workers(self) -> bool:
        """Whether a worker was seen lately; true where that cannot be read in time."""
        return self._estimates.ask(lambda: bool(self._workers())) is not False

    def default_model(self) -> str:
        """The name of the default model, from the models file alone."""
        return self._catalog.default.name

    def list_strategies(self) -> list[Document]:
        """The strategies with their parameters."""
        return [strategy_document(spec) for spec in STRATEGIES]

    def queue(self) -> Document:
        """The state of the queue."""
        numbers = self.history.queue()
        waits = numbers.waiting_seconds
        return {
            "depth": numbers.depth,
            "running": numbers.running,
            "workers": [
                {
                    "id": worker.id,
                    "models": list(worker.models),
                    "last_seen": instant(worker.last_seen),
                    "slots": worker.num_slots,
                    "active": worker.num_active,
                    "tokens_per_second": round(worker.tokens_per_second, 2),
                }
                for worker in self._workers()
            ],
            "throughput": {
                "jobs_per_minute": round(numbers.jobs_per_minute, 2),
                "tokens_per_second": round(numbers.tokens_per_second, 2),
            },
            "waiting": {
                "median_seconds": waits[len(waits) // 2] if waits else None,
                "p90_seconds": waits[int(len(waits) * 0.9)] if waits else None,
            },
            "redis": "ok" if self.bus.ping() else "degraded",
            "problems": [
                {
                    "host": problem.host,
                    "kind": problem.kind,
                    "name": problem.name,
                    "reason": problem.reason,
                    "at": instant(problem.at),
                }
                for problem in self.problems()
            ],
        }

    def problems(self) -> list[SeenProblem]:
        """What workers leave out, and what this process finds wrong with its models file."""
        found = problems(self.store.engine)
        own = self._live_catalog.problem
        if own is not None and not any(item.reason == own for item in found):
            at = int(time.time() * 1000)
            found.append(SeenProblem(worker_host(), "models_file", MODELS_FILE, own, at))
        return found

    def tokenize(self, payload: object) -> Document:
        """A text cut into a model's tokens.

        Raises:
            ValidationFailed: unknown model, bad text, or a model nobody has loaded yet.
        """
        if not isinstance(payload, Mapping):
            raise ValidationFailed([FieldError("", "the body must be a JSON object")])
        try:
            request = TokenizeRequest.model_validate(dict(payload))
        except ValidationError as error:
            raise ValidationFailed(field_errors(error)) from None
        catalog = self._catalog
        name = request.model or catalog.default.name
        if name not in catalog.names:
            known = ", ".join(catalog.names)
            message = f"there is no model of that name; the models are: {known}"
            raise ValidationFailed([FieldError("model", message)])
        if not self._ensure_tokenizer(name):
            message = "no worker has loaded this model yet; try again when one has"
            raise ValidationFailed([FieldError("model", message)])
        try:
            tokens = self._tokenizers.tokens(name, request.text)
        except TokenizerFault as fault:
            raise ValidationFailed([FieldError("text", str(fault))]) from None
        return {"tokens": tokens, "count": len(tokens)}

    def openapi(self) -> Document:
        """The OpenAPI document."""
        return openapi_document()

    def reader(self) -> EventReader:
        """What hears of written jobs, on the event loop of its caller."""
        return EventReader(self.bus.redis_url)

    # ---- parts ------------------------------------------------------------------------------

    @property
    def _catalog(self) -> Catalog:
        """As it stands; whoever looks twice keeps it, or it may be another."""
        return self._live_catalog.current

    def _publish(self, job: JobRecord) -> None:
        """After the commit, and without it: a lost ticket costs two seconds."""
        reach("before_ticket", job.prompt)
        if self._tickets is None or job.status != "queued":
            return
        try:
            self._tickets.publish(job.model)
        except Exception as error:  # an edge: the job is stored, and the answer must say so
            log.warning("ticket_not_published", model=job.model, reason=type(error).__name__)

    def _document(self, job: JobRecord) -> Document:
        return self._documents([job])[0]

    def _documents(self, jobs: Sequence[JobRecord]) -> list[Document]:
        """The jobs as clients see them.

        Places in the line are best effort: the jobs were stored, or read, and no failure of an
        estimate may turn that into an error.
        """
        places: dict[str, Document] = {}
        if any(job.status == "queued" for job in jobs):
            places = self._estimates.ask(lambda: self.places(jobs)) or {}
        return [job_document(job, places.get(job.id, UNKNOWN_POSITION)) for job in jobs]

    def places(self, jobs: Iterable[JobRecord]) -> dict[str, Document]:
        """Where each queued job stands in the line; see ``QueuePositions``."""
        return self._line.places(jobs)

    def _run_document(self, run: RunRecord) -> Document:
        return run_document(run, self._documents(run.jobs))

    def _new_job(
        self,
        request: JobRequestBase,
        parameters: dict[str, Any],
        context: RequestContext,
        *,
        variant_index: int | None = None,
        sample_index: int | None = None,
    ) -> NewJob:
        model = request.model or context.default_model
        count = context.limits[model].count_tokens
        return NewJob(
            model=model,
            prompt=request.prompt,
            strategy=request.strategy,
            parameters=parameters,
            has_trace=request.trace,
            num_prompt_tokens=count(request.prompt) if count else None,
            variant_index=variant_index,
            sample_index=sample_index,
        )

    def _context(self) -> RequestContext:
        known = self._known_cards()
        catalog = self._catalog
        limits = {}
        for name in catalog.names:
            card = known.get(name)
            counts = self._ensure_tokenizer(name)
            limits[name] = ModelLimits(
                context_length=card.context_length if card else None,
                vocabulary_size=card.vocabulary_size if card else None,
                count_tokens=self._tokenizers.counter(name) if counts else None,
            )
        return RequestContext(catalog.default.name, limits)

    def _known_cards(self) -> dict[str, ServedModel]:
        if not acquire_in_time(self._lock):  # it is held while the database is asked
            raise StorageUnavailable(
                "The database did not answer in time; try again in a moment.",
                retry_after_seconds=TEMPORARY_RETRY_SECONDS,
            )
        try:
            if time.monotonic() >= self._cards_until:
                self._cards = cards(self.store.engine)
                self._cards_until = time.monotonic() + CARDS_SECONDS
            return self._cards
        finally:
            self._lock.release()

    def _ensure_tokenizer(self, name: str) -> bool:
        card = self._known_cards().get(name)
        if card is None:
            return False
        if not self._tokenizers.has(name, card.revision):
            text = tokenizer_json(self.store.engine, name)
            if text is None:
                return False
            self._tokenizers.put(name, card.revision, text)
        return self._tokenizers.can_read(name)

    def _workers(self) -> list[SeenWorker]:
        return seen_workers(self.store.engine)


def _checked_id(text: str) -> str:
    """An id that no database chokes on; whatever else it is, nothing is stored under it."""
    if not 1 <= len(text) <= 64 or not text.isascii() or not text.isprintable():
        raise NotFound("Nothing is stored under that id.")
    return text


def _checked_key(key: str | None) -> str | None:
    if key is not None and not _KEY.fullmatch(key):
        message = "must be 1 to 255 printable ASCII characters"
        raise ValidationFailed([FieldError("Idempotency-Key", message)])
    return key


def _hash(payload: object, key: str | None) -> str | None:
    if key is None:
        return None
    canonical = json.dumps(_canonical(payload), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """A JSON value such that what means the same request is equal.

    JSON has one kind of number, so 2.0 is 2; a null field is one that was left out. A default that
    is written out stays apart from one that is left out: the default may change between the two.
    """
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
