"""/jobs/{id}/share and /runs/{id}/share: links for everybody."""

from __future__ import annotations

from flask import Blueprint, Response, request

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import services
from textmill.backend.share_requests import parse_share_request

blueprint = Blueprint("shares", __name__)


@blueprint.post("/jobs/<job_id>/share")
def share_job(job_id: str) -> Response:
    """Share a job."""
    asked = parse_share_request(read_json(request))
    return json_response(services().sharing.share("job", job_id, asked))


@blueprint.delete("/jobs/<job_id>/share")
def unshare_job(job_id: str) -> Response:
    """Revoke the link of a job: 204."""
    services().sharing.unshare("job", job_id)
    return Response(status=204)


@blueprint.post("/runs/<run_id>/share")
def share_run(run_id: str) -> Response:
    """Share a run."""
    asked = parse_share_request(read_json(request))
    return json_response(services().sharing.share("run", run_id, asked))


@blueprint.delete("/runs/<run_id>/share")
def unshare_run(run_id: str) -> Response:
    """Revoke the link of a run: 204."""
    services().sharing.unshare("run", run_id)
    return Response(status=204)
