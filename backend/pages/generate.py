"""The generate page: the form, and its submission."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.current import principal, services
from textmill.backend.pages.generate_form import (
    COMMON_FIELDS,
    GenerateForm,
    as_text,
    blank_form,
    form_from_browser,
    form_from_job,
    own_parameters,
    slider,
)
from textmill.backend.pages.phrases import Phrase
from textmill.backend.pages.responses import EXAMPLE_PROMPT, see_other
from textmill.backend.response_models import ParameterView, QueueView, StrategyView
from textmill.backend.run_requests import MAX_SAMPLES
from textmill.backend.strategy_views import strategy_views
from textmill.core.errors import NotFound, Unavailable, ValidationFailed
from textmill.core.strategies import STRATEGIES_BY_NAME

MORE_PARAMETERS = "More filters and penalties"
EXAMPLES = (
    ("Title + abstract", EXAMPLE_PROMPT),
    ("“Attention is all”", "Attention is all"),
    ("Start of a survey", "Large language models have recently"),
    ("A result", "Our experiments show that"),
)
FIELD_LABELS = {
    "prompt": "Prompt",
    "model": "Model",
    "strategy": "Strategy",
    "samples": "Samples",
    "trace": "Trace",
}
blueprint = Blueprint("generate", __name__)


@blueprint.get("/")
def generate_page() -> Response:
    """Show the form; ``?from=JOB`` fills it from a job, ``?prompt=`` sets the prompt."""
    form = blank_form(strategy_views(), services().models.all())
    is_missing = False
    job_id = request.args.get("from", "")
    if job_id:
        try:
            job = services().jobs.read(job_id)
        except NotFound:
            is_missing = True
        else:
            form = form_from_job(form, job, is_continued="continue" in request.args)
    form.prompt = request.args.get("prompt", form.prompt)
    return _render(form, is_missing=is_missing)


@blueprint.get("/generate")
def generate_again() -> Response:
    """Redirect the reload of a rejected form."""
    return see_other("/")


@blueprint.post("/generate")
def generate() -> Response:
    """Submit the form: as a job, or as a run if it asks for several texts."""
    form = _sent_form()
    form.check()
    if not form.ticked or not form.models or not form.prompt.strip():
        return _render(form, 422)
    submission, owner = services().submission, principal().owner_id
    try:
        # A bad number is sent as text, so that it is rejected together with all other errors.
        if form.is_single:
            page = submission.submit_job(form.payload(), owner_id=owner)["links"]["page"]
        else:
            page = submission.submit_run(form.payload(), owner_id=owner)["links"]["page"]
    except ValidationFailed as failed:
        form.add_errors(failed.errors)
        return _render(form, 422)
    except Unavailable as busy:
        response = _render(form, busy.http_status, busy)
        response.headers["Retry-After"] = str(busy.retry_after_seconds)
        return response
    return see_other(page)


def _sent_form() -> GenerateForm:
    """Return the form as it was sent. This reads no database, so that no prompt is lost."""
    blank = blank_form(
        strategy_views(), [{"name": services().models.default_name(), "default": True}]
    )
    sent = request.form
    return form_from_browser(blank, sent, sent.getlist("strategy"), sent.getlist("model"))


def _render(
    form: GenerateForm,
    status: int = 200,
    busy: Unavailable | None = None,
    *,
    is_missing: bool = False,
) -> Response:
    queue = _queue_or_none()
    strategies = strategy_views()
    page = render_template(
        "generate.html",
        form=form,
        models=_models_or_none() or [_unknown_model(name) for name in form.models],
        strategies=[_card(strategy, form) for strategy in strategies],
        common=_common_parameters(strategies),
        max_samples=MAX_SAMPLES,
        examples=EXAMPLES,
        has_workers=queue is None or bool(queue["workers"]),
        estimate=queue_sentence(queue) if queue else "",
        busy=busy,
        is_missing=is_missing,
        labels=_labels(strategies),
    )
    return make_response(page, status)


def _card(strategy: StrategyView, form: GenerateForm) -> dict[str, Any]:
    """Return a strategy with its parameters: those shown, and those folded away."""
    name, shown, folded, is_open = strategy["name"], [], [], False
    folded_names = {p.name for p in STRATEGIES_BY_NAME[name].parameters if p.is_folded}
    for parameter in own_parameters(strategy):
        tunable = {**parameter, "slider": slider(parameter)}
        if parameter["name"] not in folded_names:
            shown.append(tunable)
            continue
        folded.append(tunable)
        key, default = f"{name}.{parameter['name']}", parameter["default"]
        is_open |= key in form.errors or form.values[key] not in (as_text(default), str(default))
    titles = {f"{name}.{p['name']}": p["title"] for p in strategy["parameters"]}
    kept = [(key, titles[key], text) for key, text in form.kept.items() if key in titles]
    return {
        **strategy,
        "shown": shown,
        "folded": folded,
        "folded_title": folded[0]["title"] if len(folded) == 1 else MORE_PARAMETERS,
        "is_open": is_open or bool(kept),
        "kept": kept,
    }


def _models_or_none() -> Sequence[Any]:
    """Return the models, or none during a database outage: a typed prompt must survive it."""
    try:
        return services().models.all()
    except Unavailable:
        return []


def _queue_or_none() -> QueueView | None:
    try:
        return services().queue.state()
    except Unavailable:
        return None


def _unknown_model(name: str) -> dict[str, Any]:
    """Return a model that was chosen, during a database outage."""
    return {"name": name, "description": "", "context_length": None, "loaded_by": None}


def _common_parameters(strategies: Sequence[StrategyView]) -> dict[str, ParameterView]:
    """Return the parameters that every strategy has, by name."""
    return {p["name"]: p for p in strategies[0]["parameters"] if p["name"] in COMMON_FIELDS}


def _labels(strategies: Sequence[StrategyView]) -> dict[str, str]:
    """Return the label of every field, for the summary of errors."""
    labels = dict(FIELD_LABELS)
    labels |= {name: p["title"] for name, p in _common_parameters(strategies).items()}
    for strategy in strategies:
        for parameter in strategy["parameters"]:
            if parameter["name"] in COMMON_FIELDS:
                continue
            key = f"{strategy['name']}.{parameter['name']}"
            labels[key] = f"{strategy['title']}, {parameter['title']}"
    return labels


def queue_sentence(queue: QueueView) -> str:
    """Return how long a new job may wait, from recent waits: ``2 ahead, about 4–8 s``."""
    ahead = queue["depth"]
    if not ahead:
        return Phrase.NOBODY_AHEAD if queue["workers"] else ""
    waits = queue["waiting"]
    low, high = waits["median_seconds"], waits["p90_seconds"]
    if low is None or high is None:
        return Phrase.AHEAD.format(count=ahead)
    low, high = max(1, math.floor(low)), max(1, math.ceil(high))
    span = f"{low}–{high}" if high > low else f"{low}"
    return Phrase.AHEAD_FOR.format(count=ahead, span=span)
