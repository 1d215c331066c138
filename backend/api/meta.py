"""/models, /strategies, /queue, /tokenize and /openapi.json."""

from __future__ import annotations

from flask import Blueprint, Response, request

from textmill.backend.api import json_response, services
from textmill.backend.bodies import read_json

blueprint = Blueprint("meta", __name__)


@blueprint.get("/models")
def models() -> Response:
    """The models."""
    return json_response(services().list_models())


@blueprint.get("/strategies")
def strategies() -> Response:
    """The strategies."""
    return json_response(services().list_strategies())


@blueprint.get("/queue")
def queue() -> Response:
    """The state of the queue."""
    return json_response(services().queue())


@blueprint.post("/tokenize")
def tokenize() -> Response:
    """A text cut into tokens."""
    return json_response(services().tokenize(read_json(request)))


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """The OpenAPI document."""
    return json_response(services().openapi())
