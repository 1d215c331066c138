"""The page of models, their loss curves and their cards."""

from __future__ import annotations

import hashlib
from typing import Any

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.current import services
from textmill.backend.pages.finetuning import describe_finetuning
from textmill.backend.pages.formats import compact_number
from textmill.backend.pages.markdown import card_page
from textmill.backend.pages.model_groups import group_models
from textmill.backend.response_models import ModelView

# The SVG is untrusted: opened as a page of its own, it must neither run nor load anything.
CURVE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; sandbox"
)
blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
def models_page() -> Response:
    """Show the models."""
    models = services().models.all()
    page = render_template(
        "models.html",
        groups=[[_shown(model) for model in group] for group in group_models(models)],
        is_any_loaded=any(model["loaded_by"] for model in models),
    )
    return make_response(page)


@blueprint.get("/models/<name>/loss.svg")
def curve(name: str) -> Response:
    """Return the loss curve of a model."""
    svg = services().models.curve(name).encode()
    response = make_response(svg)
    response.headers["Content-Type"] = "image/svg+xml; charset=utf-8"
    response.headers["Content-Security-Policy"] = CURVE_POLICY
    response.headers["Cache-Control"] = "no-cache"
    response.set_etag(hashlib.sha256(svg).hexdigest()[:16])
    response.make_conditional(request)
    return response


@blueprint.get("/models/<name>/card")
def model_card_page(name: str) -> Response:
    """Show the card of a model."""
    text = services().models.card(name)
    model = next((m for m in services().models.all() if m["name"] == name), None)
    curve_url = model["links"]["curve"] if model else None
    card = card_page(text, name, curve_url)
    return make_response(render_template("model_card.html", name=name, card=card, model=model))


def _shown(model: ModelView) -> dict[str, Any]:
    finetuning = model["finetuning"]
    return {
        **model,
        "parameters_label": compact_number(model["parameters"]),
        "origin": describe_finetuning(finetuning) if finetuning else None,
    }
