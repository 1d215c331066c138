"""The run, history, models, queue and API pages, on a stub of the services with hostile data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.unit.backend.stub_services import install
from textmill.backend.errors import register_errors
from textmill.backend.openapi import openapi_document
from textmill.backend.pages import pages
from textmill.backend.pages.comparison import columns_of, run_request
from textmill.backend.pages.docs import groups
from textmill.backend.pages.formats import ago, compact_number, parameter_summary
from textmill.backend.pages.history import PAGE_SIZE
from textmill.backend.pages.responses import render_error
from textmill.core.errors import NotFound
from textmill.core.instants import parse_instant
from textmill.core.jobs.history import Filters, encode_cursor
from textmill.core.strategies import STRATEGIES_BY_NAME

WEB = Path(__file__).resolve().parents[3] / "web"
HOSTILE = "<script>alert(1)</script>\"'&"
RTL = "שלום עולם, نص عربي"
NOW = datetime.now(UTC)
DEFAULTS = {
    "greedy": {},
    "sampling": {"temperature": 0.7},
    "top_k": {"temperature": 0.5, "top_k": 10},
}


def moment(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")[:-6] + "Z"


def just_seen() -> str:
    """Return five seconds before now; NOW is older, because the suite imports this module early."""
    seen = datetime.now(UTC) - timedelta(seconds=5)
    return seen.isoformat(timespec="milliseconds")[:-6] + "Z"


def make_job(job_id: str, status: str = "succeeded", **values: Any) -> Any:
    strategy = values.pop("strategy", "greedy")
    base = f"/api/v1/jobs/{job_id}"
    job: dict[str, Any] = {
        "id": job_id,
        "run_id": None,
        "status": status,
        "model": "arxiv-abstracts",
        "prompt": "Attention is all",
        "strategy": strategy,
        "parameters": {
            **DEFAULTS[strategy],
            "repetition_penalty": 1.0,
            "max_new_tokens": 64,
            "seed": 7,
            "stop": [],
        },
        "text": " you need, as the first paper said.",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 4, "completion_tokens": 41},
        "queue": {"position": 3, "eta_seconds": 4.1} if status == "queued" else None,
        "error": None,
        "timings": {
            "queued_ms": 4,
            "first_token_ms": 20,
            "total_ms": 900,
            "tokens_per_second": None if status in ("queued", "running") else 45.5,
        },
        "model_revision": "abc",
        "attempt": 0 if status == "queued" else 1,
        "trace": False,
        "cancel_requested": False,
        "variant_index": None,
        "sample_index": None,
        "cursor": "1-5",
        "created_at": moment(90),
        "started_at": moment(89),
        "finished_at": None,
        "links": {"self": base, "events": f"{base}/events", "page": f"/jobs/{job_id}"},
    }
    return job | values


def make_run(run_id: str = "run-1", jobs: Iterable[Any] | None = None) -> Any:
    start = " you need. We present a model that"
    made = (
        [
            make_job("a", variant_index=0, sample_index=0, text=f"{start} learns to translate."),
            make_job(
                "b", "running", strategy="sampling", variant_index=1, sample_index=0,
                text=f"{start} {HOSTILE} 🙂 reads",
            ),
            make_job(
                "c", "queued", strategy="sampling", variant_index=1, sample_index=1, text="",
                usage={"prompt_tokens": 4, "completion_tokens": 0},
            ),
            make_job(
                "d", strategy="top_k", variant_index=2, sample_index=0, text=f" {RTL}\n\n{RTL}"
            ),
        ]
        if jobs is None
        else list(jobs)
    )  # fmt: skip
    base = f"/api/v1/runs/{run_id}"
    return {
        "id": run_id,
        "prompt": f"Title: Attention {HOSTILE}\n\nAbstract: {RTL}",
        "created_at": moment(90),
        "cursor": ",".join(job["cursor"] for job in made),
        "jobs": made,
        "links": {"self": base, "events": f"{base}/events", "page": f"/runs/{run_id}"},
    }


class StubServices:
    """Answers like ``Services``, from memory."""

    def __init__(self) -> None:
        self.run = make_run()
        failed = make_job(
            "e", "failed", prompt=f"{HOSTILE}\nsecond line", text="",
            error={"code": "error", "message": HOSTILE}, created_at=moment(86_400 * 3),
        )  # fmt: skip
        rest = [failed, make_job("f", "canceled", prompt=RTL, strategy="top_k", run_id="run-1")]
        self.jobs: dict[str, dict[str, Any]] = {
            job["id"]: job for job in [*self.run["jobs"], *rest]
        }
        self.workers = [
            {
                "id": "host-1:4711", "models": ["arxiv-abstracts", HOSTILE],
                "last_seen": just_seen(), "slots": 16, "active": 5, "tokens_per_second": 103.25,
            }
        ]  # fmt: skip
        self.asked: list[Filters] = []
        self.canceled: list[str] = []
        self.submitted: list[Any] = []
        self.next_cursor: str | None = "older-1"

    def get_run(self, run_id: str) -> Any:
        if run_id != self.run["id"]:
            raise NotFound("There is no such run.")
        return self.run

    def get_job(self, job_id: str) -> Any:
        if job_id not in self.jobs:
            raise NotFound("There is no such job.")
        return self.jobs[job_id]

    def delete_job(self, job_id: str) -> None:
        self.get_job(job_id)
        del self.jobs[job_id]

    def cancel_job(self, job_id: str) -> Any:
        self.canceled.append(job_id)
        return self.get_job(job_id)

    def submit_run(self, payload: Any, *, owner_id: str, **_: Any) -> Any:
        self.submitted.append(payload)
        return make_run("run-2")

    def list_jobs(self, filters: Filters) -> dict[str, Any]:
        self.asked.append(filters)
        words = (filters.query or "").lower()
        found = [
            job for job in self.jobs.values() if words in (job["prompt"] + job["text"]).lower()
        ]
        return {"items": found, "next_cursor": self.next_cursor if found else None}

    def list_models(self) -> list[dict[str, Any]]:
        known = {
            "name": "arxiv-abstracts", "description": HOSTILE, "default": True, "family": "llama",
            "path": "native", "parameters": 134_515_008, "context_length": 8192,
            "vocabulary_size": 49_152, "dtype": "float32", "revision": "0123456789abcdef",
            "loaded_by": 1, "finetuning": None, "links": {"curve": None, "card": None},
        }  # fmt: skip
        unknown = dict.fromkeys(known) | {
            "name": "smollm2-135m", "description": "", "default": False, "loaded_by": 0,
            "links": known["links"],
        }  # fmt: skip
        return [known | ({} if self.workers else {"loaded_by": 0}), unknown]

    def has_workers(self) -> bool:
        return bool(self.workers)

    def queue(self) -> dict[str, Any]:
        return {
            "depth": 3, "running": 5, "workers": self.workers,
            "throughput": {"jobs_per_minute": 12.5, "tokens_per_second": 310.5},
            "waiting": {"median_seconds": 0.35, "p90_seconds": 130},
            "redis": "ok",
        }  # fmt: skip


def make_app(services: StubServices) -> Flask:
    app = Flask(
        "backend", static_folder=str(WEB / "static"), template_folder=str(WEB / "templates")
    )
    install(app, services)
    app.register_blueprint(pages)
    register_errors(app, render_error)
    return app


@pytest.fixture
def services() -> StubServices:
    return StubServices()


@pytest.fixture
def client(services: StubServices) -> FlaskClient:
    return make_app(services).test_client()


PAGES = (
    "/runs/run-1", "/compare?id=a&id=d&id=e", "/history", "/history?q=attention&status=running",
    "/history?since=yesterday", "/models", "/queue", "/docs",
)  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_no_page_contains_foreign_markup_or_inline_scripts(client: FlaskClient, path: str) -> None:
    page = client.get(path).text
    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=\"|javascript:", page)
    for tag in re.findall(r"<script[^>]*>", page):
        assert 'src="/static/' in tag
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    ids = re.findall(r"\sid=\"([^\"]*)\"", page)
    assert len(ids) == len(set(ids))


# ---- run and compare ------------------------------------------------------------------------


def test_a_run_says_that_a_worker_was_lost(client: FlaskClient, services: StubServices) -> None:
    hidden = 'id="restarted" role="status" hidden'
    assert hidden in client.get("/runs/run-1").text
    services.run["jobs"][1]["attempt"] = 2
    assert hidden not in client.get("/runs/run-1").text


def test_a_run_has_one_column_for_each_variant(client: FlaskClient) -> None:
    answer = client.get("/runs/run-1")
    assert answer.status_code == 200
    assert re.findall(r'data-title="([^"]*)"', answer.text) == ["Greedy", "Sampling", "Top-k"]
    assert answer.text.count("data-job=") == 4
    assert "temperature 0.5 · k 10" in answer.text
    assert 'data-events="/api/v1/runs/run-1/events"' in answer.text
    assert 'data-cursor="1-5,1-5,1-5,1-5"' in answer.text
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in answer.text
    assert "differs from Greedy after 35 characters" in answer.text
    assert "3 of 4" not in answer.text
    assert "2 of 4 jobs have ended" in answer.text


def test_a_carriage_return_survives_html(client: FlaskClient, services: StubServices) -> None:
    services.run = make_run(jobs=[make_job("a", text="one\r\ntwo<\r")])
    assert "one&#13;\ntwo&lt;&#13;</span>" in client.get("/runs/run-1").text


def test_an_ended_run_does_not_refresh_itself(client: FlaskClient, services: StubServices) -> None:
    services.run = make_run(jobs=[make_job("a", variant_index=0), make_job("b", variant_index=1)])
    page = client.get("/runs/run-1").text
    assert "http-equiv" not in page
    assert "All 2 jobs have ended" in page
    assert "the same text as Greedy" in page


def test_an_unknown_run_is_a_404_page(client: FlaskClient) -> None:
    assert client.get("/runs/nothing", headers={"Accept": "text/html"}).status_code == 404
    assert client.get("/compare?id=nothing").status_code == 404


def test_cancel_all_cancels_what_has_not_ended(client: FlaskClient, services: StubServices) -> None:
    answer = client.post("/runs/run-1/cancel")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/runs/run-1")
    assert services.canceled == ["b", "c"]


def test_run_again_sends_the_variants_without_their_seeds(
    client: FlaskClient, services: StubServices
) -> None:
    answer = client.post("/runs/run-1/again")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/runs/run-2")
    body = services.submitted[0]
    assert [(v["strategy"], v["samples"]) for v in body["variants"]] == [
        ("greedy", 1), ("sampling", 2), ("top_k", 1),
    ]  # fmt: skip
    assert not any("seed" in variant for variant in body["variants"])


def test_selected_jobs_are_shown_side_by_side(client: FlaskClient) -> None:
    page = client.get("/compare?id=a&id=d&id=gone&id=a").text
    assert re.findall(r'data-job="([^"]*)"', page) == ["a", "d"]
    assert "1 of the selected jobs is not stored any more" in page
    assert "data-events" not in page
    assert client.get("/compare").headers["Location"] == "/history"


# ---- history --------------------------------------------------------------------------------


def test_the_history_shows_rows_and_keeps_the_filters(
    client: FlaskClient, services: StubServices
) -> None:
    given = {"q": "attention", "status": "succeeded", "strategy": "greedy", "since": "2026-01-02"}
    answer = client.get("/history", query_string=given | {"utm": "x"})
    assert answer.status_code == 200
    since = parse_instant("since", given["since"], is_end=False)
    assert services.asked == [
        Filters("attention", "succeeded", "greedy", since=since, limit=int(PAGE_SIZE))
    ]
    page = answer.text
    assert 'value="attention"' in page
    assert '<option value="succeeded" selected>' in page
    query = "q=attention&amp;status=succeeded&amp;strategy=greedy&amp;since=2026-01-02"
    assert f'href="/history?{query}&amp;cursor=older-1"' in page
    assert f'href="/api/v1/jobs/export?format=csv&amp;{query}"' in page
    assert f'action="/history/delete?{query}"' in page
    assert re.search(r'<time [^>]*datetime="20[^"]*Z"', page)
    assert "Newest" not in page
    assert (
        f'href="/history?{query}"'
        in client.get(f"/history?{query}&cursor={encode_cursor(5)}".replace("&amp;", "&")).text
    )


def test_bad_filters_are_named_and_their_values_kept(client: FlaskClient) -> None:
    answer = client.get("/history?since=yesterday&status=odd&strategy=%3Cb%3E&q=kept")
    assert answer.status_code == 422
    assert 'id="since-error"' in answer.text
    assert re.search(
        r'type="text" id="since" name="since" value="yesterday" aria-invalid', answer.text
    )
    assert '<option value="odd" selected>odd</option>' in answer.text
    assert "&lt;b&gt;" in answer.text
    assert 'value="kept"' in answer.text


def test_an_empty_history_offers_an_example(client: FlaskClient, services: StubServices) -> None:
    services.jobs = {}
    page = client.get("/history").text
    assert "No jobs yet" in page
    assert re.search(
        r'<form method="post" action="/generate"><input type="hidden" name="prompt"', page
    )
    assert "No job matches" in client.get("/history?q=absent").text


def test_selected_jobs_are_deleted_and_the_filters_stay(
    client: FlaskClient, services: StubServices
) -> None:
    answer = client.post("/history/delete?q=word&evil=1", data={"id": ["a", "gone", "b", "a"]})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/history?q=word")
    assert set(services.jobs) == {"c", "d", "e", "f"}


@pytest.mark.parametrize("path", ["/history/delete", "/runs/run-1/cancel", "/runs/run-1/again"])
@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}]
)
def test_forms_of_other_sites_are_rejected(
    client: FlaskClient, services: StubServices, path: str, headers: dict[str, str]
) -> None:
    assert client.post(path, data={"id": "a"}, headers=headers).status_code == 403
    assert "a" in services.jobs
    assert not services.canceled
    assert not services.submitted


# ---- models, queue, API ---------------------------------------------------------------------


def test_the_models_page_describes_each_model(client: FlaskClient, services: StubServices) -> None:
    page = client.get("/models").text
    for words in ("135 million", "8,192 tokens", "Default", "Loaded by 1 worker", "Not loaded"):
        assert words in page
    services.workers = []
    assert "No worker has loaded a model" in client.get("/models").text


def test_the_queue_is_drawn(client: FlaskClient, services: StubServices) -> None:
    page = client.get("/queue").text
    assert page.count('class="slot slot--used"') == 5
    assert page.count('class="slot"') == 11
    assert "5 of 16 slots used" in page
    assert "seconds ago" in page
    assert "350 ms" in page
    assert "2 min" in page
    assert 'id="no-worker" hidden' in page
    services.workers = []
    assert 'id="no-worker" hidden' not in client.get("/queue").text


def test_the_api_page_contains_every_operation(client: FlaskClient) -> None:
    page = client.get("/docs").text
    for path, methods in openapi_document()["paths"].items():
        assert f'<code class="operation__path">{path}</code>' in page
        for operation in methods.values():
            assert operation["summary"] in page
    assert "http://localhost/api/v1/jobs" in page


def test_the_python_snippets_compile_and_no_snippet_has_a_placeholder() -> None:
    for group in groups(openapi_document(), "http://localhost:8000"):
        for operation in group["operations"]:
            compile(operation["python"], operation["id"], "exec")
            assert "{job_id}" not in operation["curl"] + operation["python"]
            assert "{run_id}" not in operation["curl"] + operation["python"]


# ---- formats ----------------------------------------------------------------------------------


def test_numbers_times_and_parameters_are_formatted_for_readers() -> None:
    assert compact_number(134_515_008) == "135 million"
    assert compact_number(1_100_000_000) == "1.1 billion"
    assert compact_number(999_960) == "1 million"
    assert compact_number(None) == "–"
    assert ago(moment(61), NOW) == "1 minute ago"
    assert ago(moment(-3), NOW) == "just now"
    named = {"temperature": 0.7, "repetition_penalty": 1.2, "seed": 4}
    assert parameter_summary("sampling", named) == "temperature 0.7 · repetition penalty 1.2"


def test_of_the_strategy_custom_only_what_has_an_effect_is_shown() -> None:
    chosen = {"top_p": 0.8, "logit_bias": {"5": 1.0, "6": -2.0}, "seed": 3, "stop": []}
    assert parameter_summary("custom", STRATEGIES_BY_NAME["custom"].defaults()) == ""
    assert parameter_summary("custom", STRATEGIES_BY_NAME["custom"].defaults() | chosen) == (
        "p 0.8 · logit bias (2)"
    )


def test_chosen_jobs_of_one_variant_get_a_column_each() -> None:
    jobs = [make_job("a", variant_index=0), make_job("b", variant_index=0)]
    assert len(columns_of(jobs, {}, by_variant=False)) == 2
    assert len(columns_of(jobs, {}, by_variant=True)) == 1
    assert run_request(make_run(jobs=jobs))["variants"][0]["samples"] == 2
