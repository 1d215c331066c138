"""Submission: validates a request, stores its jobs, and publishes tickets to the workers."""

from __future__ import annotations

from typing import Any

import structlog

from textmill.backend.request_context import RequestContext
from textmill.backend.request_models import JobRequestBase, parse_job_request
from textmill.backend.response_models import JobView, RunView
from textmill.backend.run_requests import parse_run_request
from textmill.backend.services.idempotency import body_hash, checked_key
from textmill.backend.services.job_views import JobViews
from textmill.backend.services.models import ModelService
from textmill.core.failpoints import reach
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, NewJob, Origin
from textmill.core.tickets import TicketPublisher

log = structlog.get_logger(__name__)


class SubmissionService:
    """Accepts jobs and runs.

    A request is accepted when its transaction commits. After that, a ticket tells the workers that
    a job is queued; without the ticket, a worker finds the job within two seconds.
    """

    def __init__(
        self,
        store: JobStore,
        models: ModelService,
        views: JobViews,
        tickets: TicketPublisher | None,
    ) -> None:
        self._store = store
        self._models = models
        self._views = views
        self._tickets = tickets

    def submit_job(
        self, payload: object, *, owner_id: str, idempotency_key: str | None = None
    ) -> JobView:
        """Store a job.

        Args:
            payload: the parsed body of ``POST /jobs``.
            owner_id: the client, for the fair share of the queue and the scope of the key.
            idempotency_key: a key under which the same body always returns the same job.

        Raises:
            ValidationFailed, QueueFull, RateLimited: nothing was stored.
        """
        key = checked_key(idempotency_key)
        context = self._models.request_context()
        request = parse_job_request(payload, context)
        new = _new_job(request, request.resolved_parameters(), context)
        job = self._store.submit(new, Origin(owner_id, key, body_hash(payload, key)))
        self._publish(job)
        return self._views.job(job)

    def submit_run(
        self, payload: object, *, owner_id: str, idempotency_key: str | None = None
    ) -> RunView:
        """Store a run with all its jobs, or nothing.

        Args:
            payload: the parsed body of ``POST /runs``.
            owner_id: the client, for the fair share of the queue and the scope of the key.
            idempotency_key: a key under which the same body always returns the same run.

        Raises:
            ValidationFailed, QueueFull, RateLimited: nothing was stored.
        """
        key = checked_key(idempotency_key)
        context = self._models.request_context()
        jobs = [
            _new_job(
                plan.request,
                plan.parameters,
                context,
                variant_index=plan.variant_index,
                sample_index=plan.sample_index,
            )
            for plan in parse_run_request(payload, context)
        ]
        origin = Origin(owner_id, key, body_hash(payload, key))
        run = self._store.submit_run(jobs[0].prompt, jobs, origin)
        for job in run.jobs:
            self._publish(job)
        return self._views.run(run)

    def _publish(self, job: JobRecord) -> None:
        """Publish a ticket; a failure is logged, because the job is already committed."""
        reach("before_ticket", job.prompt)
        if self._tickets is None or job.status != "queued":
            return
        try:
            self._tickets.publish(job.model)
        except Exception as error:  # the job is stored, so the answer must still be 202
            log.warning("ticket_not_published", model=job.model, reason=type(error).__name__)


def _new_job(
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
