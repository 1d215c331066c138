"""The HTTP API: JSON and problem documents. One module for each resource."""

from __future__ import annotations

from flask import Blueprint

from textmill.backend.api import events, jobs, models, queue, runs, schema, shares

API_PREFIX = "/api/v1"
api = Blueprint("api", __name__, url_prefix=API_PREFIX)
for _module in (jobs, runs, shares, events, models, queue, schema):
    api.register_blueprint(_module.blueprint)
