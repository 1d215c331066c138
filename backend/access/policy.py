"""What each address requires. An address that is not in the table is refused to everybody."""

from __future__ import annotations

from textmill.core.access.principals import ADMIN, READ, SUBMIT

PUBLIC = "public"
"""Anybody, without credentials; nothing there depends on who asks."""

NEEDS: dict[str, str] = {
    "static": PUBLIC,
    "health.alive": PUBLIC,
    "health.ready": PUBLIC,
    "health.metrics": ADMIN,
    "api.schema.openapi": PUBLIC,
    "api.jobs.submit": SUBMIT,
    "api.jobs.read": READ,
    "api.jobs.cancel": SUBMIT,
    "api.jobs.delete": SUBMIT,
    "api.jobs.trace": READ,
    "api.jobs.index": READ,
    "api.jobs.export": READ,
    "api.events.of_job": READ,
    "api.events.of_run": READ,
    "api.runs.submit": SUBMIT,
    "api.runs.read": READ,
    "api.models.models": READ,
    "api.models.strategies": READ,
    "api.models.tokenize": READ,
    "api.queue.queue": READ,
    "pages.docs.docs_page": PUBLIC,
    "pages.generate.generate_page": READ,
    "pages.generate.generate": SUBMIT,
    "pages.generate.generate_again": READ,
    "pages.history.history_page": READ,
    "pages.history.delete_selected": SUBMIT,
    "pages.job.job_page": READ,
    "pages.job.cancel": SUBMIT,
    "pages.job.delete": SUBMIT,
    "pages.job.again": SUBMIT,
    "pages.run.run_page": READ,
    "pages.run.compare_page": READ,
    "pages.run.cancel_run": SUBMIT,
    "pages.run.run_again": SUBMIT,
    "pages.models.models_page": READ,
    "pages.models.model_card_page": READ,
    "pages.models.curve": READ,
    "pages.queue.queue_page": READ,
    "pages.sign_in.sign_in_page": PUBLIC,
    "pages.sign_in.sign_in": PUBLIC,
    "pages.sign_in.sign_out": PUBLIC,
    "pages.sign_in.forget_me": SUBMIT,
    "pages.sign_in.robots": PUBLIC,
}
