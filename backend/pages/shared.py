"""The page behind a link, and the forms that make and revoke one."""

from __future__ import annotations

from flask import Blueprint, Response, make_response, render_template

from textmill.backend.current import services
from textmill.backend.pages.comparison import columns_of
from textmill.backend.pages.formats import first_line
from textmill.backend.pages.phrases import STATUS_LABELS
from textmill.backend.pages.responses import see_other, strategy_titles
from textmill.backend.share_requests import ShareRequest

MAX_DESCRIPTION_CHARACTERS = 200
blueprint = Blueprint("shared", __name__)


@blueprint.get("/shared/<token>")
def shared_page(token: str) -> Response:
    """Show what a link names, and nothing that leads to the rest."""
    shared = services().sharing.shared(token)
    page = render_template(
        "shared.html",
        prompt=shared.prompt,
        columns=columns_of(shared.jobs, strategy_titles(), by_variant=True),
        title=first_line(shared.prompt) or "A text",
        description=shared.jobs[0]["text"][:MAX_DESCRIPTION_CHARACTERS] if shared.jobs else "",
        is_indexed=shared.is_indexed,
        status_labels=STATUS_LABELS,
    )
    response = make_response(page)
    if shared.is_indexed:
        response.headers["X-Robots-Tag"] = "all"
    return response


@blueprint.post("/jobs/<job_id>/share")
def share_job(job_id: str) -> Response:
    """Share a job."""
    services().sharing.share("job", job_id, ShareRequest())
    return see_other(f"/jobs/{job_id}#shared")


@blueprint.post("/jobs/<job_id>/unshare")
def unshare_job(job_id: str) -> Response:
    """Revoke the link of a job."""
    services().sharing.unshare("job", job_id)
    return see_other(f"/jobs/{job_id}")


@blueprint.post("/runs/<run_id>/share")
def share_run(run_id: str) -> Response:
    """Share a run."""
    services().sharing.share("run", run_id, ShareRequest())
    return see_other(f"/runs/{run_id}#shared")


@blueprint.post("/runs/<run_id>/unshare")
def unshare_run(run_id: str) -> Response:
    """Revoke the link of a run."""
    services().sharing.unshare("run", run_id)
    return see_other(f"/runs/{run_id}")
