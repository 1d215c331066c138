"""/openapi.json: the description of the API."""

from __future__ import annotations

from flask import Blueprint, Response

from textmill.backend.api.json_response import json_response
from textmill.backend.openapi import openapi_document

blueprint = Blueprint("schema", __name__)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """Return the OpenAPI document."""
    return json_response(openapi_document())
