"""/queue: the state of the queue."""

from __future__ import annotations

from flask import Blueprint, Response

from textmill.backend.api.json_response import json_response
from textmill.backend.current import services

blueprint = Blueprint("queue", __name__)


@blueprint.get("/queue")
def queue() -> Response:
    """Return the state of the queue."""
    return json_response(services().queue.state())
