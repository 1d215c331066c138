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

from pydantic import ValidationError
from sqlalchemy import Engine

from backend.filters import parse_filters
from backend.openapi import openapi_document
from backend.presenting import (
    Document,
    base_names,
    instant,
    job_document,
    model_document,
    run_document,
    strategy_document,
)
from backend.tokenizing import TokenizerCache
from backend.waiting_line import WaitingLine
from core.errors import FieldError, NotFound, ValidationFailed
from core.events import EventBus, EventsUnavailable
from core.failpoints import reach
from core.history import History
from core.jobs import JobStore, NewJob, Origin
from core.live_catalog import LiveCatalog
from core.model_cards import ModelCard, card_markdown, cards, curve_svg, tokenizer_json
from core.model_catalog import Catalog
from core.records import JobRecord, RunRecord
from core.schemas import (
    JobRequestBase,
    ModelLimits,
    RequestContext,
    TokenizeRequest,
    field_errors,
    parse_job_request,
    parse_run_request,
)
from core.strategies import STRATEGIES
from core.tickets import TicketPublisher
from core.workers import SeenWorker, seen_workers

WITHOUT_REDIS_SECONDS = 0.25  # between two looks at the row of somebody who waits
CARDS_SECONDS = 2.0  # how long a newly loaded model may stay unknown to validation
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
        self._line = WaitingLine(store.engine, self.history)
        self._tickets = tickets
        self._live_catalog = catalog
        self._tokenizers = TokenizerCache()
        self._cards: dict[str, ModelCard] = {}
        self._cards_until = 0.0
        self._lock = threading.Lock()

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
        self.bus.request_cancel(job.id)
        return self._document(job)

    def delete_job(self, job_id: str) -> None:
        """Remove a job; one that runs is canceled first.

        Raises:
            NotFound: there is no such job.
        """
        job = self.store.delete(_checked_id(job_id))
        if job.status == "running":
            self.bus.request_cancel(job.id)
        self.bus.forget(job.id)

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

    def list_jobs(self, filters: Mapping[str, str]) -> Document:
        """A page of the history.

        Raises:
            ValidationFailed: names every bad filter.
        """
        page = self.history.page(parse_filters(filters))
        return {
            "items": self._documents(page.items),
            "next_cursor": page.next_cursor,
        }

    def export(self, filters: Mapping[str, str]) -> Iterator[Document]:
        """All jobs that the filters pick, newest first.

        Raises:
            ValidationFailed, StorageUnavailable: at the call, which reads the first batch, so
                that the answer can still be an error.
        """
        jobs = self.history.export(parse_filters(filters))
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
        }

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
        tokens = self._tokenizers.tokens(name, request.text)
        return {"tokens": tokens, "count": len(tokens)}

    def openapi(self) -> Document:
        """The OpenAPI document."""
        return openapi_document()

    def wait(self, job_id: str, seconds: float) -> Document:
        """Wait until a job has ended or the time is up.

        Raises:
            NotFound: there is no such job.
        """
        deadline = time.monotonic() + seconds
        job = self.job(job_id)
        last = job.cursor if job.attempt else "0-0"
        while not job.is_final and (left := deadline - time.monotonic()) > 0:
            last = self._pause(job_id, last, min(left, 1.0))
            job = self.history.job(job_id)
        return self._document(job)

    def _pause(self, job_id: str, last: str, seconds: float) -> str:
        """Sleep until the job's stream says that it is done; returns the last id seen."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                entries = self.bus.read({job_id: last}, int(left * 1000))
            except EventsUnavailable:
                time.sleep(min(left, WITHOUT_REDIS_SECONDS))
                return last
            for entry in entries:
                last = f"{entry.attempt}-{entry.end}"
            if any(entry.kind == "done" for entry in entries):
                return last
        return last

    # ---- parts ------------------------------------------------------------------------------

    @property
    def _catalog(self) -> Catalog:
        """As it stands; whoever looks twice keeps it, or it may be another."""
        return self._live_catalog.current

    def _publish(self, job: JobRecord) -> None:
        """After the commit, and without it: a lost ticket costs two seconds."""
        reach("before_ticket", job.prompt)
        if self._tickets is not None and job.status == "queued":
            self._tickets.publish(job.model)

    def _document(self, job: JobRecord) -> Document:
        return self._documents([job])[0]

    def _documents(self, jobs: Sequence[JobRecord]) -> list[Document]:
        places = self.places(jobs)
        return [job_document(job, places.get(job.id)) for job in jobs]

    def places(self, jobs: Iterable[JobRecord]) -> dict[str, Document]:
        """Where each queued job stands in the line; see ``WaitingLine``."""
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
                count_tokens=self._counter(name) if counts else None,
            )
        return RequestContext(catalog.default.name, limits)

    def _counter(self, name: str) -> Any:
        return lambda text: self._tokenizers.count(name, text)

    def _known_cards(self) -> dict[str, ModelCard]:
        with self._lock:
            if time.monotonic() >= self._cards_until:
                self._cards = cards(self.store.engine)
                self._cards_until = time.monotonic() + CARDS_SECONDS
            return self._cards

    def _ensure_tokenizer(self, name: str) -> bool:
        card = self._known_cards().get(name)
        if card is None:
            return False
        if not self._tokenizers.has(name, card.revision):
            text = tokenizer_json(self.store.engine, name)
            if text is None:
                return False
            self._tokenizers.put(name, card.revision, text)
        return True

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
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
