"""The blueprints of OpenAI's API."""

from __future__ import annotations

from flask import Blueprint

from textmill.backend.openai import chat, completions, models, responses

openai = Blueprint("openai", __name__, url_prefix="/v1")
for _module in (completions, chat, responses, models):
    openai.register_blueprint(_module.blueprint)
helpers = models.helpers
