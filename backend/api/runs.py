"""/runs: one prompt with several variants."""

from __future__ import annotations

from flask import Blueprint, Response, request

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import principal, services

blueprint = Blueprint("runs", __name__)


@blueprint.post("/runs")
def submit() -> Response:
    """Store a run and all its jobs, or nothing: 202."""
    run = services().submission.submit_run(
        read_json(request),
        owner_id=principal().owner_id,
        idempotency_key=request.headers.get("Idempotency-Key"),
    )
    return json_response(run, 202, {"Location": run["links"]["self"]})


@blueprint.get("/runs/<run_id>")
def read(run_id: str) -> Response:
    """Return a run with its jobs."""
    return json_response(services().runs.read(run_id))
