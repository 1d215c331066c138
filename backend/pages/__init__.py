"""The HTML pages, one module for each. Every page works without JavaScript."""

from __future__ import annotations

from flask import Blueprint, Response, request

from textmill.backend.owner import remember_owner
from textmill.backend.pages import docs, generate, history, job, models, queue, run
from textmill.backend.pages.formats import fixed
from textmill.backend.pages.phrases import Phrase
from textmill.backend.pages.responses import render_unavailable
from textmill.core.errors import Unavailable

pages = Blueprint("pages", __name__)
for _module in (generate, job, run, history, models, queue, docs):
    pages.register_blueprint(_module.blueprint)
pages.add_app_template_filter(fixed)
pages.add_app_template_global(Phrase, "Phrase")
pages.register_error_handler(Unavailable, render_unavailable)


@pages.after_request
def _finish(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    return remember_owner(request, response)
