"""The history page: stored jobs, newest first, with filters."""

from __future__ import annotations

import contextlib
from datetime import date
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, make_response, render_template, request
from werkzeug.datastructures import MultiDict

from textmill.backend.current import access, services
from textmill.backend.history_filters import parse_filters
from textmill.backend.pages.formats import ago, first_line, parameter_summary
from textmill.backend.pages.phrases import STATUS_LABELS
from textmill.backend.pages.responses import (
    EXAMPLE_PROMPT,
    see_other,
    strategy_titles,
    with_query,
)
from textmill.backend.pages.run import distinct_ids
from textmill.backend.response_models import JobPage, JobView
from textmill.backend.strategy_views import strategy_views
from textmill.core.errors import NotFound, ValidationFailed

FILTERS = ("q", "status", "strategy", "model", "since", "until", "run_id", "starred")
FILTER_LABELS = {
    "q": "Search",
    "since": "From",
    "until": "Until",
    "cursor": "Page",
    "run_id": "Run",
}
PAGE_SIZE = "25"
MAX_DELETED = 200
blueprint = Blueprint("history", __name__)


@blueprint.get("/history")
def history_page() -> Response:
    """Show a page of the history."""
    given = {name: request.args.get(name, "") for name in FILTERS}
    filters = {name: value for name, value in given.items() if value.strip()}
    listed, errors = _listed()
    titles = strategy_titles()
    page = render_template(
        "history.html",
        given=given,
        errors=errors,
        rows=[_row(job, titles) for job in listed["items"]],
        is_filtered=bool(filters),
        is_first=not request.args.get("cursor"),
        query=urlencode(filters),
        date_types={name: _date_type(given[name]) for name in ("since", "until")},
        strategies=strategy_views(),
        models=services().models.all(),
        status_labels=STATUS_LABELS,
        filter_labels=FILTER_LABELS,
        example_prompt=EXAMPLE_PROMPT,
        kept_days=access().kept_days,
        **_links(filters, listed["next_cursor"]),
    )
    return make_response(page, 422 if errors else 200)


def _listed() -> tuple[JobPage, dict[str, str]]:
    """Return the jobs that the query asks for, and the messages about its bad fields."""
    asked = MultiDict(request.args)
    asked["limit"] = PAGE_SIZE
    try:
        return services().jobs.page(parse_filters(asked, ignores_others=True)), {}
    except ValidationFailed as failed:
        errors = {error.field: error.message for error in failed.errors}
        return {"items": [], "next_cursor": None}, errors


def _links(filters: dict[str, str], next_cursor: str | None) -> dict[str, Any]:
    """Return the addresses on the page, all of which keep the filters."""
    older = with_query("/history", filters | {"cursor": next_cursor}) if next_cursor else None
    without_run = {name: value for name, value in filters.items() if name != "run_id"}
    return {
        "newest": with_query("/history", filters),
        "older": older,
        "without_run": with_query("/history", without_run),
        "exports": {
            form: with_query("/api/v1/jobs/export", {"format": form} | filters)
            for form in ("jsonl", "csv")
        },
    }


def _row(job: JobView, titles: dict[str, str]) -> dict[str, Any]:
    return {
        "job": job,
        "prompt": first_line(job["prompt"]) or "(blank)",
        "text": first_line(job["text"]),
        "strategy": titles.get(job["strategy"], job["strategy"]),
        "summary": parameter_summary(job["strategy"], job["parameters"]),
        "ago": ago(job["created_at"]),
    }


def _date_type(value: str) -> str:
    """Return the type of a date field: a date input would drop a value that is not a date."""
    if value:
        try:
            date.fromisoformat(value)
        except ValueError:
            return "text"
        return "date" if len(value) == len("2026-01-01") else "text"
    return "date"


@blueprint.post("/history/delete")
def delete_selected() -> Response:
    """Delete the selected jobs."""
    for job_id in distinct_ids(request.form.getlist("id"), MAX_DELETED):
        with contextlib.suppress(NotFound):  # it was deleted meanwhile
            services().jobs.delete(job_id)
    kept = {name: request.args[name] for name in FILTERS if request.args.get(name, "").strip()}
    return see_other(with_query("/history", kept))
