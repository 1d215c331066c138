"""/models, /strategies and /tokenize."""

from __future__ import annotations

from flask import Blueprint, Response, request

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import services
from textmill.backend.strategy_views import strategy_views

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
def models() -> Response:
    """List the models."""
    return json_response(services().models.all())


@blueprint.get("/strategies")
def strategies() -> Response:
    """List the strategies."""
    return json_response(strategy_views())


@blueprint.post("/tokenize")
def tokenize() -> Response:
    """Split a text into tokens."""
    return json_response(services().models.tokenize(read_json(request)))
