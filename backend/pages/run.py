"""The pages of a run and of chosen jobs: texts side by side, live or ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.current import principal, services
from textmill.backend.pages.comparison import Column, columns_of, run_request
from textmill.backend.pages.formats import exactly
from textmill.backend.pages.job_status import (
    ended_label,
    has_ended,
    is_restarted,
    queue_label,
)
from textmill.backend.pages.phrases import STATUS_LABELS
from textmill.backend.pages.responses import see_other, strategy_titles
from textmill.backend.response_models import JobView
from textmill.core.errors import Conflict, NotFound

MAX_COMPARED = 12
blueprint = Blueprint("run", __name__)


@blueprint.get("/runs/<run_id>")
def run_page(run_id: str) -> Response:
    """Show a run: its variants side by side."""
    run = services().runs.read(run_id)
    columns = columns_of(run["jobs"], strategy_titles(), by_variant=True)
    link = services().sharing.link_of(run["id"])
    prompt = common_prompt(run["jobs"], run["prompt"])
    return _side_by_side(run["jobs"], columns, run=run, prompt=prompt, link=link)


@blueprint.get("/compare")
def compare_page() -> Response:
    """Show the jobs that were selected in the history side by side."""
    ids = distinct_ids(request.args.getlist("id"), MAX_COMPARED)
    if not ids:
        return see_other("/history")
    jobs = []
    for job_id in ids:
        with contextlib.suppress(NotFound):
            jobs.append(services().jobs.read(job_id))
    if not jobs:
        raise NotFound("None of these jobs is stored any more.")
    columns = columns_of(jobs, strategy_titles(), by_variant=False)
    prompt = common_prompt(jobs, None)
    return _side_by_side(jobs, columns, prompt=prompt, num_missing=len(ids) - len(jobs))


def _side_by_side(jobs: list[JobView], columns: list[Column], **values: Any) -> Response:
    is_waiting = any(job["status"] == "queued" for job in jobs)
    values = {"run": None, "num_missing": 0, "link": None} | values
    page = render_template(
        "run.html",
        jobs=jobs,
        columns=columns,
        is_final=all(map(has_ended, jobs)),
        is_restarted=any(map(is_restarted, jobs)),
        ended_label=ended_label(jobs),
        has_workers=not is_waiting or services().queue.has_workers(),
        status_labels=STATUS_LABELS,
        queue_label=queue_label,
        exactly=exactly,
        host_url=request.host_url.rstrip("/"),
        **values,
    )
    return make_response(page)


@blueprint.post("/runs/<run_id>/cancel")
def cancel_run(run_id: str) -> Response:
    """Cancel all jobs of a run that have not ended; their texts so far are kept."""
    for job in services().runs.read(run_id)["jobs"]:
        if not has_ended(job):
            with contextlib.suppress(Conflict, NotFound):  # it ended or was deleted meanwhile
                services().jobs.cancel(job["id"])
    return see_other(f"/runs/{run_id}")


@blueprint.post("/runs/<run_id>/again")
def run_again(run_id: str) -> Response:
    """Repeat a run with new seeds."""
    run = services().runs.read(run_id)
    owner_id = principal().owner_id
    if common_prompt(run["jobs"], run["prompt"]) is None:
        made = services().submission.submit_again(run["jobs"], owner_id=owner_id)
    else:
        made = services().submission.submit_run(run_request(run), owner_id=owner_id)
    return see_other(made["links"]["page"])


def common_prompt(jobs: Iterable[JobView], of_none: str | None) -> str | None:
    """The prompt of some jobs; ``None`` if they have several, ``of_none`` if there are no jobs."""
    prompts = {job["prompt"] for job in jobs}
    if not prompts:
        return of_none
    return prompts.pop() if len(prompts) == 1 else None


def distinct_ids(values: Iterable[str], limit: int) -> list[str]:
    """Return the ids of a form, each once, up to a limit."""
    return list(dict.fromkeys(value for value in values if value))[:limit]
