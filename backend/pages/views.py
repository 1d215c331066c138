"""The pages: generate, one job, errors. Server-rendered; everything works without JavaScript."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from flask import Blueprint, Response, current_app, make_response, render_template, request
from flask import redirect as flask_redirect

from textmill.backend.owner import owner_id, remember_owner
from textmill.backend.pages import lists as page_lists
from textmill.backend.pages.generate_form import (
    COMMON_FIELDS,
    GenerateForm,
    blank_form,
    form_from_browser,
    form_from_job,
    own_parameters,
    slider,
)
from textmill.backend.pages.lists import EXAMPLE_PROMPT, STATUS_WORDS
from textmill.backend.pages.origin import refuse_cross_site
from textmill.backend.pages.template_filters import has_ended, is_restarted
from textmill.backend.request_models import MAX_SAMPLES
from textmill.backend.services.services import Services
from textmill.core.errors import Conflict, FieldError, NotFound, Unavailable, ValidationFailed

pages = Blueprint("pages", __name__)

Document = dict[str, Any]
EXAMPLES = (
    ("Title + abstract", EXAMPLE_PROMPT),
    ("“Attention is all”", "Attention is all"),
    ("A survey’s first words", "Large language models have recently"),
    ("A result", "Our experiments show that"),
)
MIN_RATE_SECONDS = 0.2  # a rate over less says nothing
END_WORDS = {
    "stop": "the text came to its end",
    "length": "the length asked for was reached",
    "canceled": "it was canceled; the text so far is kept",
    "deadline": "its time was up",
    "error": "an error ended it",
}


def services() -> Services:
    """The product's actions."""
    return cast(Services, current_app.extensions["textmill"])


def render_error(
    status: int, title: str, detail: str, errors: Sequence[FieldError] | None
) -> Response:
    """An error as a page."""
    page = render_template(
        "error.html", status=status, title=title, detail=detail, errors=errors or []
    )
    return make_response(page, status)


@pages.errorhandler(Unavailable)
def unavailable(error: Unavailable) -> Response:
    """What passes by itself, as a page that says when to come back."""
    page = render_template(
        "error.html",
        status=error.http_status,
        title="Not possible just now",
        detail=str(error),
        errors=[],
        retry_after_seconds=error.retry_after_seconds,
    )
    response = make_response(page, error.http_status)
    response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response


# ---- generate -------------------------------------------------------------------------------


@pages.get("/")
def generate_page() -> Response:
    """The form; ``?from=JOB`` fills it with a job, ``?prompt=`` with a prompt."""
    form = _blank_form()
    is_gone = False
    job_id = request.args.get("from", "")
    if job_id:
        try:
            job = services().get_job(job_id)
        except NotFound:
            is_gone = True
        else:
            form = form_from_job(form, job, is_continued="continue" in request.args)
    form.prompt = request.args.get("prompt", form.prompt)
    return _generate_page(form, is_gone=is_gone)


@pages.get("/generate")
def generate_again() -> Response:
    """Where a reload of a refused form may end."""
    return _redirect("/")


@pages.post("/generate")
def generate() -> Response:
    """Submit the form: one text is a job, several are a run."""
    refuse_cross_site()
    blank = _blank_form(models=[{"name": services().default_model(), "default": True}])
    sent = request.form
    form = form_from_browser(blank, sent, sent.getlist("strategy"), sent.getlist("model"))
    form.check()
    if not form.ticked or not form.models or not form.prompt.strip():
        return _generate_page(form, 422)
    owner = owner_id(request)
    try:
        # A number that is none goes along as text: it is refused with all the others at once.
        if form.is_single:
            made = services().submit_job(form.payload(), owner_id=owner)
        else:
            made = services().submit_run(form.payload(), owner_id=owner)
    except ValidationFailed as failed:
        form.add_errors(failed.errors)
        return _generate_page(form, 422)
    except Unavailable as busy:
        response = _generate_page(form, busy.http_status, busy)
        response.headers["Retry-After"] = str(busy.retry_after_seconds)
        return response
    return _redirect(made["links"]["page"])


def _blank_form(models: Sequence[Document] | None = None) -> GenerateForm:
    known = services().list_models() if models is None else models
    return blank_form(services().list_strategies(), known)


def _models_if_known() -> list[Document]:
    """The models, or none while the database is away: what was typed must not be lost to that."""
    try:
        return services().list_models()
    except Unavailable:
        return []


def _queue_if_known() -> Document | None:
    try:
        return services().queue()
    except Unavailable:
        return None


def _generate_page(
    form: GenerateForm,
    status: int = 200,
    busy: Unavailable | None = None,
    *,
    is_gone: bool = False,
) -> Response:
    queue = _queue_if_known()
    strategies = services().list_strategies()
    page = render_template(
        "generate.html",
        form=form,
        models=_models_if_known() or [_unknown_model(name) for name in form.models],
        strategies=[
            strategy | {"own": [p | {"slider": slider(p)} for p in own_parameters(strategy)]}
            for strategy in strategies
        ],
        common=_common(strategies),
        max_samples=MAX_SAMPLES,
        examples=EXAMPLES,
        has_workers=queue is None or bool(queue["workers"]),
        estimate=queue_sentence(queue) if queue else "",
        busy=busy,
        is_gone=is_gone,
        labels=_labels(strategies),
    )
    return make_response(page, status)


def _unknown_model(name: str) -> Document:
    """What was chosen, while the database that knows more is away."""
    return {"name": name, "description": "", "context_length": None, "loaded_by": None}


def _common(strategies: Sequence[Document]) -> dict[str, Document]:
    """The parameters that every strategy takes, by their names."""
    return {p["name"]: p for p in strategies[0]["parameters"] if p["name"] in COMMON_FIELDS}


def _labels(strategies: Sequence[Document]) -> dict[str, str]:
    """Every field's name for people, for the summary of what was refused."""
    labels = {
        "prompt": "Prompt",
        "model": "Model",
        "strategy": "Strategy",
        "samples": "Samples",
        "trace": "Trace",
    }
    labels |= {name: parameter["title"] for name, parameter in _common(strategies).items()}
    for strategy in strategies:
        for parameter in own_parameters(strategy):
            key = f"{strategy['name']}.{parameter['name']}"
            labels[key] = f"{strategy['title']}, {parameter['title']}"
    return labels


def queue_sentence(queue: Document) -> str:
    """How long a new job may wait, by the waits of late: ``2 ahead, about 4–8 s``."""
    ahead = queue["depth"]
    if not ahead:
        return "Nobody is waiting" if queue["workers"] else ""
    waits = queue["waiting"]
    low, high = waits["median_seconds"], waits["p90_seconds"]
    if low is None or high is None:
        return f"{ahead} ahead"
    low, high = max(1, math.floor(low)), max(1, math.ceil(high))
    span = f"{low}–{high}" if high > low else f"{low}"
    return f"{ahead} ahead, about {span} s"


# ---- one job --------------------------------------------------------------------------------


@pages.get("/jobs/<job_id>")
def job_page(job_id: str) -> Response:
    """A job, live or ended."""
    return make_response(_job_page(services().get_job(job_id)))


def _job_page(job: Document) -> str:
    strategies = {strategy["name"]: strategy for strategy in services().list_strategies()}
    strategy = strategies.get(job["strategy"], {"title": job["strategy"], "parameters": []})
    titles = {p["name"]: p["title"] for p in strategy["parameters"]}
    return render_template(
        "job.html",
        job=job,
        is_final=has_ended(job),
        strategy_title=strategy["title"],
        parameters=[
            (titles.get(name, name), _parameter_text(value))
            for name, value in job["parameters"].items()
            if value not in ([], None)
        ],
        status_words=STATUS_WORDS,
        end_words=END_WORDS,
        has_workers=job["status"] != "queued" or services().has_workers(),
        is_restarted=is_restarted(job),
        rate=_rate_so_far(job),
        curl=_curl(job),
    )


def _rate_so_far(job: Document) -> float | None:
    """Tokens per second of a text that is being written."""
    waited_ms = job["timings"]["first_token_ms"]
    if job["status"] != "running" or waited_ms is None:
        return None
    began = datetime.fromisoformat(job["created_at"]) + timedelta(milliseconds=waited_ms)
    seconds = (datetime.now(UTC) - began).total_seconds()
    made = job["usage"]["completion_tokens"] or 0
    return made / seconds if seconds >= MIN_RATE_SECONDS and made else None


def _parameter_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(json.dumps(item, ensure_ascii=False) for item in value)
    return str(value)


def _request_of(job: Document) -> Document:
    """The body that makes the job again."""
    body = {"prompt": job["prompt"], "model": job["model"], "strategy": job["strategy"]}
    body |= job["parameters"]
    if job.get("trace"):
        body["trace"] = True
    return body


def _curl(job: Document) -> str:
    body = json.dumps(_request_of(job), ensure_ascii=False)
    address = f"{request.host_url.rstrip('/')}/api/v1/jobs"
    return f"curl {shlex.quote(address)} --json {shlex.quote(body)}"


@pages.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """Cancel a job; one that has ended in the meantime stays as it is."""
    refuse_cross_site()
    with contextlib.suppress(Conflict):  # it ended before the click arrived: the page shows it
        services().cancel_job(job_id)
    return _redirect(f"/jobs/{job_id}")


@pages.post("/jobs/<job_id>/delete")
def delete(job_id: str) -> Response:
    """Remove a job."""
    refuse_cross_site()
    services().delete_job(job_id)
    return _redirect("/history")


@pages.post("/jobs/<job_id>/again")
def again(job_id: str) -> Response:
    """Make a job once more, with a new seed."""
    refuse_cross_site()
    body = _request_of(services().get_job(job_id))
    body.pop("seed", None)
    made = services().submit_job(body, owner_id=owner_id(request))
    return _redirect(made["links"]["page"])


# ---- parts ----------------------------------------------------------------------------------


def _redirect(path: str) -> Response:
    return make_response(flask_redirect(path, 303))


@pages.after_request
def _remember(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    return remember_owner(request, response)


page_lists.register(pages)
