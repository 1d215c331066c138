"""The pages that list and compare: run, compare, history, models, queue, API."""

from __future__ import annotations

import contextlib
from datetime import date
from typing import Any, cast
from urllib.parse import urlencode

from flask import (
    Blueprint,
    Response,
    current_app,
    make_response,
    redirect,
    render_template,
    request,
)
from werkzeug.datastructures import MultiDict

from textmill.backend.history_filters import parse_filters
from textmill.backend.owner import owner_id
from textmill.backend.pages import models as page_models
from textmill.backend.pages.api_docs import groups
from textmill.backend.pages.origin import refuse_cross_site
from textmill.backend.pages.template_filters import (
    ago,
    columns_of,
    exactly,
    first_line,
    fixed,
    has_ended,
    ids_of,
    is_restarted,
    parameters_in_words,
    request_of_run,
    seconds_in_words,
    slot_marks,
)
from textmill.backend.services.services import Services
from textmill.core.errors import Conflict, NotFound, ValidationFailed
from textmill.core.problems import in_words

Document = dict[str, Any]
FORM_FILTERS = ("q", "status", "strategy", "model", "since", "until")
FILTERS = (*FORM_FILTERS, "run_id")
PAGE_SIZE = "25"
MAX_COMPARED = 12
MAX_DELETED = 200
STATUS_WORDS = {
    "queued": "Waiting",
    "running": "Writing",
    "succeeded": "Finished",
    "failed": "Failed",
    "canceled": "Canceled",
}
EXAMPLE_PROMPT = "Title: A Simple Method for Long-Range Attention\n\nAbstract: In this paper we"


def register(pages: Blueprint) -> None:
    """Add the routes to the pages' blueprint."""
    pages.get("/runs/<run_id>")(run_page)
    pages.post("/runs/<run_id>/cancel")(cancel_run)
    pages.post("/runs/<run_id>/again")(run_again)
    pages.get("/compare")(compare_page)
    pages.get("/history")(history_page)
    pages.post("/history/delete")(delete_selected)
    pages.get("/queue")(queue_page)
    pages.get("/docs")(docs_page)
    page_models.register(pages)
    pages.add_app_template_filter(fixed)


def _services() -> Services:
    return cast(Services, current_app.extensions["textmill"])


# ---- run and compare ------------------------------------------------------------------------


def run_page(run_id: str) -> Response:
    """A run: its strategies side by side, live or ended."""
    run = _services().get_run(run_id)
    columns = columns_of(run["jobs"], _titles(), by_variant=True)
    return _compared(run["jobs"], columns, run=run, prompt=run["prompt"])


def compare_page() -> Response:
    """Chosen jobs side by side."""
    ids = ids_of(request.args.getlist("id"), MAX_COMPARED)
    if not ids:
        return _see_other("/history")
    jobs = []
    for job_id in ids:
        with contextlib.suppress(NotFound):
            jobs.append(_services().get_job(job_id))
    if not jobs:
        raise NotFound("None of these texts is stored any more.")
    prompts = {job["prompt"] for job in jobs}
    columns = columns_of(jobs, _titles(), by_variant=False)
    prompt = prompts.pop() if len(prompts) == 1 else None
    return _compared(jobs, columns, prompt=prompt, num_missing=len(ids) - len(jobs))


def _compared(jobs: list[Document], columns: list[Document], **values: Any) -> Response:
    is_final = all(has_ended(job) for job in jobs)
    is_waiting = any(job["status"] == "queued" for job in jobs)
    values = {"run": None, "num_missing": 0} | values
    page = render_template(
        "run.html",
        jobs=jobs,
        columns=columns,
        is_final=is_final,
        is_restarted=any(is_restarted(job) for job in jobs),
        num_ended=sum(has_ended(job) for job in jobs),
        has_workers=not is_waiting or _services().has_workers(),
        status_words=STATUS_WORDS,
        exactly=exactly,
        **values,
    )
    return make_response(page)


def cancel_run(run_id: str) -> Response:
    """Cancel all of a run that has not ended; the texts so far are kept."""
    refuse_cross_site()
    for job in _services().get_run(run_id)["jobs"]:
        if not has_ended(job):
            with contextlib.suppress(Conflict, NotFound):  # it ended or went in the meantime
                _services().cancel_job(job["id"])
    return _see_other(f"/runs/{run_id}")


def run_again(run_id: str) -> Response:
    """Make a run once more, with new seeds."""
    refuse_cross_site()
    body = request_of_run(_services().get_run(run_id))
    made = _services().submit_run(body, owner_id=owner_id(request))
    return _see_other(made["links"]["page"])


# ---- history --------------------------------------------------------------------------------


def history_page() -> Response:
    """What was written, newest first."""
    given = {name: request.args.get(name, "") for name in FILTERS}
    asked = MultiDict(request.args)
    asked["limit"] = PAGE_SIZE
    errors: dict[str, str] = {}
    listed: Document = {"items": [], "next_cursor": None}
    try:
        listed = _services().list_jobs(parse_filters(asked, ignores_others=True))
    except ValidationFailed as failed:
        errors = {error.field: error.message for error in failed.errors}
    kept = {name: value for name, value in given.items() if value.strip()}
    titles = _titles()
    page = render_template(
        "history.html",
        given=given,
        errors=errors,
        rows=[_row(job, titles) for job in listed["items"]],
        is_filtered=bool(kept),
        is_first=not request.args.get("cursor"),
        query=urlencode(kept),
        newest=_with_query("/history", kept),
        older=_with_query("/history", kept | {"cursor": listed["next_cursor"]})
        if listed["next_cursor"]
        else None,
        exports={
            form: _with_query("/api/v1/jobs/export", {"format": form} | kept)
            for form in ("jsonl", "csv")
        },
        without_run=_with_query("/history", {k: v for k, v in kept.items() if k != "run_id"}),
        date_types={name: _date_type(given[name]) for name in ("since", "until")},
        strategies=_services().list_strategies(),
        models=_services().list_models(),
        status_words=STATUS_WORDS,
        example_prompt=EXAMPLE_PROMPT,
    )
    return make_response(page, 422 if errors else 200)


def _row(job: Document, titles: dict[str, str]) -> Document:
    return {
        "job": job,
        "prompt": first_line(job["prompt"]) or "(blank)",
        "text": first_line(job["text"]),
        "strategy": titles.get(job["strategy"], job["strategy"]),
        "words": parameters_in_words(job["parameters"]),
        "ago": ago(job["created_at"]),
    }


def _date_type(value: str) -> str:
    """A date field drops what is no date; then a text field keeps what was typed."""
    if value:
        try:
            date.fromisoformat(value)
        except ValueError:
            return "text"
        return "date" if len(value) == len("2026-01-01") else "text"
    return "date"


def delete_selected() -> Response:
    """Remove the ticked jobs."""
    refuse_cross_site()
    for job_id in ids_of(request.form.getlist("id"), MAX_DELETED):
        with contextlib.suppress(NotFound):  # somebody was quicker
            _services().delete_job(job_id)
    kept = {name: request.args[name] for name in FILTERS if request.args.get(name, "").strip()}
    return _see_other(_with_query("/history", kept))


# ---- queue, API -----------------------------------------------------------------------------


def queue_page() -> Response:
    """The queue and its workers."""
    queue = _services().queue()
    workers = [
        worker
        | {
            "ago": ago(worker["last_seen"]),
            "marks": slot_marks(worker["slots"], worker["active"]),
            "width": len(slot_marks(worker["slots"], 0)) * 14,
        }
        for worker in queue["workers"]
    ]
    page = render_template(
        "queue.html",
        queue=queue,
        problems=[in_words(p["kind"], p["name"], p["reason"]) for p in queue.get("problems", ())],
        workers=workers,
        median=seconds_in_words(queue["waiting"]["median_seconds"]),
        p90=seconds_in_words(queue["waiting"]["p90_seconds"]),
        slots=sum(worker["slots"] for worker in workers),
        active=sum(worker["active"] for worker in workers),
    )
    return make_response(page)


def docs_page() -> Response:
    """The API, from its own description, with snippets that run as they stand."""
    document = _services().openapi()
    page = render_template(
        "docs.html",
        info=document["info"],
        groups=groups(document, request.host_url.rstrip("/")),
        base=request.host_url.rstrip("/") + document["servers"][0]["url"],
    )
    return make_response(page)


# ---- parts ----------------------------------------------------------------------------------


def _titles() -> dict[str, str]:
    return {spec["name"]: spec["title"] for spec in _services().list_strategies()}


def _with_query(path: str, values: dict[str, Any]) -> str:
    return f"{path}?{urlencode(values)}" if values else path


def _see_other(path: str) -> Response:
    return make_response(redirect(path, 303))
