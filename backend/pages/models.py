"""The page of models, with what was fine-tuned beside its base; their curves and cards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

from flask import Blueprint, Response, current_app, make_response, render_template, request

from textmill.backend.pages.markdown import card_page
from textmill.backend.pages.template_filters import number_in_words
from textmill.backend.services.services import Services
from textmill.core.catalog.figures import ComparedFigure, compare_figures, duration_text

Document = dict[str, Any]
# The picture may come from a stranger: seen as a page of its own, it may run and fetch nothing.
CURVE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; sandbox"
)
MAX_FILES_SHOWN = 8  # the model's card has them all
METHODS = {"lora": "LoRA: low-rank matrices, merged at load", "full": "full: all its weights"}
ROLES = {"training": "training", "validation": "held out", "both": "training and held out"}


def register(pages: Blueprint) -> None:
    """Add the routes to the pages' blueprint."""
    pages.get("/models")(models_page)
    pages.get("/models/<name>/loss.svg")(curve)
    pages.get("/models/<name>/card")(model_card_page)


def _services() -> Services:
    return cast(Services, current_app.extensions["textmill"])


def models_page() -> Response:
    """The models and who has loaded them."""
    models = [_shown(model) for model in _services().list_models()]
    page = render_template(
        "models.html",
        groups=groups_of(models),
        is_any_loaded=any(model["loaded_by"] for model in models),
    )
    return make_response(page)


def curve(name: str) -> Response:
    """A model's loss curve."""
    svg = _services().model_curve(name).encode()
    response = make_response(svg)
    response.headers["Content-Type"] = "image/svg+xml; charset=utf-8"
    response.headers["Content-Security-Policy"] = CURVE_POLICY
    response.headers["Cache-Control"] = "no-cache"
    response.set_etag(hashlib.sha256(svg).hexdigest()[:16])
    response.make_conditional(request)
    return response


def model_card_page(name: str) -> Response:
    """What a model's folder tells readers."""
    text = _services().model_card(name)
    model = next((m for m in _services().list_models() if m["name"] == name), None)
    curve_url = model["links"]["curve"] if model else None
    card = card_page(text, name, curve_url)
    return make_response(render_template("model_card.html", name=name, card=card, model=model))


# ---- parts ----------------------------------------------------------------------------------


def groups_of(models: Sequence[Document]) -> list[list[Document]]:
    """A base with all that descends from it is a group; models between that stand alone, one too.

    The order is the models file's, by bases.
    """
    by_name = {model["name"]: model for model in models}
    families: dict[str, list[Document]] = {}
    for model in models:
        families.setdefault(_root(model, by_name), []).append(model)
    groups: list[list[Document]] = []
    was_alone = False
    for root, family in families.items():
        family.sort(key=lambda model: model["name"] != root)
        is_alone = len(family) == 1
        if is_alone and was_alone:
            groups[-1] += family
        else:
            groups.append(family)
        was_alone = is_alone
    return groups


def _root(model: Document, by_name: dict[str, Document]) -> str:
    """The base of all its bases; in a circle, which only lies can make, the first of its names."""
    seen: list[str] = []
    while (name := str(model["name"])) not in seen:
        seen.append(name)
        base = (model["finetuning"] or {}).get("base_model")
        if base not in by_name:
            return name
        model = by_name[base]
    return min(seen[seen.index(name) :])


def _shown(model: Document) -> Document:
    found = model["finetuning"]
    words = {"parameters_words": number_in_words(model["parameters"]), "origin": None}
    return model | words | ({"origin": _origin(found)} if found else {})


def _origin(finetuning: Document) -> Document:
    """A fine-tuning in words and numbers for its card."""
    data, training = finetuning["data"], finetuning["training"]
    return {
        "base": finetuning["base_model"] or finetuning["base"],
        "is_base_served": finetuning["base_model"] is not None,
        "method": METHODS[finetuning["method"]],
        "files": _files_in_words(data["files"]),
        "examples": (
            f"{data['training']['num_examples']:,} examples learned,"
            f" {data['validation']['num_examples']:,} held out"
        ),
        "training": (
            f"{training['num_steps']:,} steps, {number_in_words(training['num_tokens'])} tokens,"
            f" {duration_text(training['seconds'])} on {training['hardware']}"
        ),
        "figures": main_figures(**finetuning["metrics"]),
        "num_examples": finetuning["metrics"]["after"]["num_examples"],
    }


def _files_in_words(files: Sequence[Document]) -> list[str]:
    words = [
        f"{file['name']} ({file['num_rows']:,} rows, {ROLES[file['role']]})"
        for file in files[:MAX_FILES_SHOWN]
    ]
    num_more = len(files) - len(words)
    return [*words, f"{num_more:,} more"] if num_more else words


def main_figures(before: Document, after: Document) -> list[ComparedFigure]:
    """The figures of a model card: the most important ones of the base and of this model."""
    return [figure for figure in compare_figures(before, after) if figure.is_main]
