"""Submission: validates a request, stores its jobs, and publishes tickets to the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog

from textmill.backend.repeating import job_request
from textmill.backend.request_context import RequestContext
from textmill.backend.request_models import JobRequestBase, parse_job_request
from textmill.backend.response_models import JobView, RunView
from textmill.backend.run_requests import PlannedJob, parse_run_request
from textmill.backend.services.idempotency import body_hash, checked_key
from textmill.backend.services.job_views import JobViews
from textmill.backend.services.models import ModelService
from textmill.core.access.audit import append
from textmill.core.access.budgets import Account, price
from textmill.core.access.principals import LOCAL, PRIORITY, Principal
from textmill.core.database.connections import writing
from textmill.core.disk import is_nearly_full
from textmill.core.errors import (
    DiskNearlyFull,
    FieldError,
    Forbidden,
    ModelUnserved,
    PromptRefused,
    Quota,
    ValidationFailed,
)
from textmill.core.failpoints import reach
from textmill.core.jobs.records import JobRecord, RunRecord
from textmill.core.jobs.store import JobStore, NewJob, Origin
from textmill.core.moderation import Moderator
from textmill.core.problems import DISK_SENTENCE
from textmill.core.settings import Settings
from textmill.core.tickets import TicketPublisher

DISK_RETRY_SECONDS = 60
UNSERVED_RETRY_SECONDS = 10  # a worker's start takes a few seconds
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
        settings: Settings,
        principal: Principal = LOCAL,
        moderator: Moderator | None = None,
    ) -> None:
        self._store = store
        self._models = models
        self._views = views
        self._tickets = tickets
        self._settings = settings
        self._principal = principal
        self._moderator = moderator
        self._account = None if principal is LOCAL else Account.of(principal, settings)
        self.quotas: tuple[Quota, ...] = ()

    def charged_to(self, principal: Principal) -> SubmissionService:
        """The same service, in which a principal's budget pays; ``quotas`` then tells the rest."""
        return SubmissionService(
            self._store,
            self._models,
            self._views,
            self._tickets,
            self._settings,
            principal,
            self._moderator,
        )

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
        (new,) = self._checked([new])
        origin = Origin(owner_id, key, body_hash(payload, key), self._account)
        job = self._store.submit(new, origin, self._note_quotas)
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
        plans = parse_run_request(payload, context)
        origin = Origin(owner_id, key, body_hash(payload, key), self._account)
        return self._views.run(self.submit_plans(plans, context, origin))

    def submit_again(self, jobs: Sequence[JobView], *, owner_id: str) -> RunView:
        """Store the jobs of a run once more, each with its own prompt and a new seed.

        Raises:
            ValidationFailed, QueueFull, RateLimited: nothing was stored.
        """
        context = self._models.request_context()
        plans = []
        for job in jobs:
            body = job_request(job)
            body.pop("seed")
            request = parse_job_request(body, context)
            place = (job["variant_index"] or 0, job["sample_index"] or 0)
            plans.append(PlannedJob(request, request.resolved_parameters(), *place))
        return self._views.run(self.submit_plans(plans, context, Origin(owner_id)))

    def submit_plans(
        self, plans: Sequence[PlannedJob], context: RequestContext, origin: Origin
    ) -> RunRecord:
        """Store validated jobs as one run, or nothing; their prompts may differ.

        Args:
            plans: the jobs.
            context: with which they were validated.
            origin: the client; its account is set here.

        Raises:
            ValidationFailed, QueueFull, RateLimited: nothing was stored.
        """
        jobs = self._checked([_planned_job(plan, context) for plan in plans])
        origin = replace(origin, account=self._account)
        run = self._store.submit_run(jobs[0].prompt, jobs, origin, self._note_quotas)
        for job in run.jobs:
            self._publish(job)
        return run

    def request_context(self) -> RequestContext:
        """Return what requests are validated with at the moment."""
        return self._models.request_context()

    def _note_quotas(self, quotas: Sequence[Quota]) -> None:
        self.quotas = tuple(quotas)

    def _checked(self, jobs: list[NewJob]) -> list[NewJob]:
        """Check the price of a request, and whether workers serve its models.

        Raises:
            Forbidden: the client may not use this priority.
            ValidationFailed: it orders more tokens than one request may.
            DiskNearlyFull: the database could not grow much more.
            ModelUnserved: no worker serves a model, and jobs do not wait for one.
        """
        if any(new.priority > 0 for new in jobs) and not self._principal.may(PRIORITY):
            raise Forbidden(
                f"The priority 1 needs an API key with the scope {PRIORITY}; omit it, or ask the"
                " operator for such a key."
            )
        limit, total = self._settings.request_tokens, sum(new.price for new in jobs)
        if limit and total > limit:
            message = (
                f"this request orders {total:,} tokens, and one may order {limit:,}; ask for fewer"
                " new tokens, samples or beams"
            )
            raise ValidationFailed([FieldError("max_new_tokens", message)])
        if is_nearly_full(self._settings.sqlite_file, self._settings.min_free_mib):
            raise DiskNearlyFull(DISK_SENTENCE, retry_after_seconds=DISK_RETRY_SECONDS)
        self._moderate(jobs)
        longest = self._settings.unserved_limit
        if longest >= self._settings.deadline_seconds:
            return jobs
        unserved = self._models.unserved({new.model for new in jobs})
        if unserved and longest == 0:
            raise ModelUnserved(
                f"No worker serves the model {min(unserved)} at the moment; try again later, or use"
                " another model.",
                retry_after_seconds=UNSERVED_RETRY_SECONDS,
            )
        return [
            replace(new, deadline_seconds=min(longest, new.deadline_seconds or longest))
            if new.model in unserved
            else new
            for new in jobs
        ]

    def _moderate(self, jobs: list[NewJob]) -> None:
        """Ask the moderator about each prompt, if there is one.

        Raises:
            PromptRefused: the audit log says who sent it, and not what.
            ModerationUnavailable: it could not be asked.
        """
        if self._moderator is None:
            return
        for prompt, model in {new.prompt: new.model for new in jobs}.items():
            verdict = self._moderator.check(prompt, "prompt", model)
            if not verdict.is_allowed:
                with writing(self._store.engine) as connection:
                    append(connection, "refuse_prompt", model, self._principal, verdict.reason)
                raise PromptRefused

    def _publish(self, job: JobRecord) -> None:
        """Publish a ticket; a failure is logged, because the job is already committed."""
        reach("before_ticket", job.prompt)
        if self._tickets is None or job.status != "queued":
            return
        try:
            self._tickets.publish(job.model)
        except Exception as error:  # the job is stored, so the answer must still be 202
            log.warning("ticket_not_published", model=job.model, reason=type(error).__name__)


def _planned_job(plan: PlannedJob, context: RequestContext) -> NewJob:
    return _new_job(
        plan.request,
        plan.parameters,
        context,
        variant_index=plan.variant_index,
        sample_index=plan.sample_index,
    )


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
    if request.prompt_ids is not None:
        num_prompt: int | None = len(request.prompt_ids)
    else:
        num_prompt = count(request.prompt) if count else None
    cost = price(
        len(request.prompt) if num_prompt is None else num_prompt,  # at most a token a character
        int(parameters["max_new_tokens"]),
        num_beams=int(parameters.get("num_beams", 1)),
        has_trace=request.trace,
    )
    return NewJob(
        model=model,
        prompt=request.prompt,
        prompt_ids=request.prompt_ids,
        strategy=request.strategy,
        parameters=parameters,
        has_trace=request.trace,
        num_prompt_tokens=num_prompt,
        deadline_seconds=request.deadline_seconds,
        price=cost,
        priority=request.priority,
        variant_index=variant_index,
        sample_index=sample_index,
    )
