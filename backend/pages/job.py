"""The page of one job, live or ended."""

from __future__ import annotations

import contextlib
import json
import shlex
from datetime import UTC, datetime, timedelta

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.current import access, principal, services
from textmill.backend.pages.formats import neutral_values, rate
from textmill.backend.pages.job_status import has_ended, is_restarted, status_sentence
from textmill.backend.pages.phrases import STATUS_LABELS
from textmill.backend.pages.responses import see_other
from textmill.backend.repeating import job_request
from textmill.backend.response_models import JobView
from textmill.backend.strategy_views import strategy_views
from textmill.core.errors import Conflict

MIN_RATE_SECONDS = 0.2  # a rate over a shorter time is noise
blueprint = Blueprint("job", __name__)


@blueprint.get("/jobs/<job_id>")
def job_page(job_id: str) -> Response:
    """Show a job."""
    job = services().jobs.read(job_id)
    strategies = {strategy["name"]: strategy for strategy in strategy_views()}
    strategy = strategies.get(job["strategy"])
    titles = {p["name"]: p["title"] for p in strategy["parameters"]} if strategy else {}
    current_rate = _current_rate(job)
    page = render_template(
        "job.html",
        job=job,
        is_final=has_ended(job),
        strategy_title=strategy["title"] if strategy else job["strategy"],
        parameters=[
            (titles.get(name, name), _parameter_text(value))
            for name, value in job["parameters"].items()
            if value not in ([], {}, None)
            and (job["strategy"] != "custom" or neutral_values("custom").get(name) != value)
        ],
        status_labels=STATUS_LABELS,
        status_sentence=status_sentence(job),
        has_workers=job["status"] != "queued" or services().queue.has_workers(),
        is_restarted=is_restarted(job),
        rate=current_rate,
        rate_label=rate(current_rate) if current_rate else "",
        curl=_curl(job),
        link=services().sharing.link_of(job["id"]),
        host_url=request.host_url.rstrip("/"),
        kept_days=access().kept_days,
    )
    return make_response(page)


def _current_rate(job: JobView) -> float | None:
    """Return the tokens per second of a running job."""
    waited_ms = job["timings"]["first_token_ms"]
    if job["status"] != "running" or waited_ms is None:
        return None
    began = datetime.fromisoformat(job["created_at"]) + timedelta(milliseconds=waited_ms)
    seconds = (datetime.now(UTC) - began).total_seconds()
    num_tokens = job["usage"]["completion_tokens"] or 0
    return num_tokens / seconds if seconds >= MIN_RATE_SECONDS and num_tokens else None


def _parameter_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(json.dumps(item, ensure_ascii=False) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {number:g}" for name, number in value.items())
    return str(value)


def _curl(job: JobView) -> str:
    body = json.dumps(job_request(job), ensure_ascii=False)
    address = f"{request.host_url.rstrip('/')}/api/v1/jobs"
    return f"curl {shlex.quote(address)} --json {shlex.quote(body)}"


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """Cancel a job."""
    with contextlib.suppress(Conflict):  # it ended before the click, and the page shows that
        services().jobs.cancel(job_id)
    return see_other(f"/jobs/{job_id}")


@blueprint.post("/jobs/<job_id>/star")
def star(job_id: str) -> Response:
    """Star a job."""
    services().jobs.star(job_id, is_starred=True)
    return see_other(f"/jobs/{job_id}")


@blueprint.post("/jobs/<job_id>/unstar")
def unstar(job_id: str) -> Response:
    """Take the star of a job away."""
    services().jobs.star(job_id, is_starred=False)
    return see_other(f"/jobs/{job_id}")


@blueprint.post("/jobs/<job_id>/delete")
def delete(job_id: str) -> Response:
    """Delete a job."""
    services().jobs.delete(job_id)
    return see_other("/history")


@blueprint.post("/jobs/<job_id>/again")
def again(job_id: str) -> Response:
    """Repeat a job with a new seed."""
    body = job_request(services().jobs.read(job_id))
    body.pop("seed", None)
    made = services().submission.submit_job(body, owner_id=principal().owner_id)
    return see_other(made["links"]["page"])
