from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.unit.backend.stub_services import install
from textmill.backend.errors import register_errors
from textmill.backend.pages import pages
from textmill.backend.pages.responses import render_error
from textmill.backend.request_models import parse_job_request
from textmill.backend.run_requests import parse_run_request
from textmill.backend.strategy_views import strategy_views
from textmill.core.errors import Conflict, NotFound, QueueFull, RateLimited, StorageUnavailable
from textmill.core.strategies import STRATEGIES

NASTY = "<script>alert(1)</script>&\"'"


def job(job_id: str = "j1", status: str = "succeeded", **changes: Any) -> dict[str, Any]:
    base = f"/api/v1/jobs/{job_id}"
    return {
        "id": job_id,
        "run_id": None,
        "status": status,
        "model": "tiny",
        "prompt": NASTY,
        "strategy": "top_k",
        "parameters": {
            "temperature": 0.5,
            "top_k": 10,
            "repetition_penalty": 1.0,
            "max_new_tokens": 64,
            "seed": 7,
            "stop": ["\n\n"],
        },
        "text": f" and {NASTY}",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 3, "completion_tokens": 41},
        "queue": {"position": 3, "eta_seconds": 4.1} if status == "queued" else None,
        "error": None,
        "timings": {
            "queued_ms": 5,
            "first_token_ms": 50,
            "total_ms": 5000,
            "tokens_per_second": 12.0,
        },
        "attempt": 0 if status == "queued" else 1,
        "trace": False,
        "cancel_requested": False,
        "cursor": "1-9",
        "created_at": "2026-11-23T12:00:00.000Z",
        "links": {"self": base, "events": f"{base}/events", "page": f"/jobs/{job_id}"},
        **changes,
    }


class StubServices:
    def __init__(self) -> None:
        self.jobs = {"j1": job(), "queued": job("queued", "queued", text="")}
        self.workers: list[dict[str, Any]] = [{"id": "w"}]
        self.submitted: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str]] = []
        self.refusal: Exception | None = None
        self.is_away = False

    def _read(self) -> None:
        if self.is_away:
            raise StorageUnavailable("The database is away.", retry_after_seconds=2)

    def get_job(self, job_id: str) -> dict[str, Any]:
        self._read()
        if job_id not in self.jobs:
            raise NotFound("Nothing is stored under that id.")
        return self.jobs[job_id]

    def list_models(self) -> list[dict[str, Any]]:
        self._read()
        common = {"context_length": 128, "loaded_by": 1}
        return [
            {"name": "tiny", "description": NASTY, "default": True, **common},
            {"name": "other", "description": "", "default": False, **common},
        ]

    def has_workers(self) -> bool:
        return bool(self.workers)

    def default_model(self) -> str:
        return "tiny"

    def queue(self) -> dict[str, Any]:
        self._read()
        waiting = {"median_seconds": 4.2, "p90_seconds": 7.6}
        return {"depth": 2, "running": 1, "workers": self.workers, "waiting": waiting}

    def submit_job(self, payload: dict[str, Any], *, owner_id: str) -> dict[str, Any]:
        parse_job_request(payload)
        return self._made(payload, "/jobs/new")

    def submit_run(self, payload: dict[str, Any], *, owner_id: str) -> dict[str, Any]:
        parse_run_request(payload)
        return self._made(payload, "/runs/new")

    def _made(self, payload: dict[str, Any], page: str) -> dict[str, Any]:
        self._read()
        if self.refusal:
            raise self.refusal
        self.submitted.append(payload)
        return {"links": {"page": page}}

    def cancel_job(self, job_id: str) -> None:
        self.calls.append(("cancel", job_id))
        if job_id == "j1":
            raise Conflict("It has ended.")

    def delete_job(self, job_id: str) -> None:
        self.calls.append(("delete", job_id))


@pytest.fixture
def services() -> StubServices:
    return StubServices()


@pytest.fixture
def client(services: StubServices) -> FlaskClient:
    web = Path(__file__).parents[3] / "web"
    app = Flask("pages", static_folder=web / "static", template_folder=web / "templates")
    install(app, services)
    app.register_blueprint(pages)
    register_errors(app, render_error)
    return app.test_client()


FORM: dict[str, Any] = {
    "prompt": "Hello",
    "model": "tiny",
    "strategy": ["greedy"],
    "greedy.repetition_penalty": "1",
    "samples": "1",
    "max_new_tokens": "64",
    "seed": "",
    "stop": "",
}


def send(client: FlaskClient, **changes: Any) -> TestResponse:
    return client.post("/generate", data={**FORM, **changes})


class Policy(HTMLParser):
    """Collects what a strict content security policy would block, and duplicate ids."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in names):
            self.blocked.append(tag)
        self.blocked += [name for name in names if name == "style" or name.startswith("on")]
        for name in ("src", "href", "action"):
            if re.match(r"(?!http:)\w+:|//|http:", names.get(name) or ""):
                self.blocked.append(f"{name}={names[name]}")
        if "id" in names:
            self.ids.append(names["id"] or "")
        for name in ("aria-describedby", "aria-labelledby", "for"):
            self.references += (names.get(name) or "").split()


@pytest.mark.parametrize(
    "address", ["/", f"/?prompt={quote(NASTY)}", "/?from=j1", "/jobs/j1", "/jobs/queued", "/nope"]
)
def test_a_page_has_nothing_that_the_policy_blocks_and_no_dangling_reference(
    client: FlaskClient, address: str
) -> None:
    page = client.get(address).text
    found = Policy()
    found.feed(page)
    assert found.blocked == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.references) <= set(found.ids)
    assert "<script>alert" not in page


def test_generated_text_is_only_ever_text(client: FlaskClient) -> None:
    page = client.get("/jobs/j1").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_presets_are_those_of_the_original_demo(client: FlaskClient) -> None:
    page = client.get("/").text
    ticked = re.findall(r'name="strategy" value="(\w+)" checked', page)
    assert ticked == ["greedy", "sampling", "top_k"]
    assert re.search(r'name="sampling.temperature" value="0.7"', page)
    assert re.search(r'name="top_k.temperature" value="0.5"', page)
    assert re.search(r'name="top_k.top_k" value="10"', page)
    assert "Generate 3" in page
    assert re.search(r'name="beam.num_beams" value="4"', page)
    assert "disabled" not in page
    assert "2 ahead, about 4–8 s" in page


def test_one_text_is_a_job(client: FlaskClient, services: StubServices) -> None:
    answer = send(client)
    assert (answer.status_code, answer.location) == (303, "/jobs/new")
    assert services.submitted == [
        {
            "prompt": "Hello",
            "model": "tiny",
            "strategy": "greedy",
            "repetition_penalty": 1,
            "max_new_tokens": 64,
        }
    ]


def test_several_strategies_are_a_run(client: FlaskClient, services: StubServices) -> None:
    answer = send(
        client,
        strategy=["greedy", "top_k"],
        prompt="a\r\nb",
        stop="\\n\\n\r\nEND",
        seed="9223372036854775807",
        trace="on",
        **{"top_k.temperature": "0,5", "top_k.top_k": "10"},
    )
    assert (answer.status_code, answer.location) == (303, "/runs/new")
    [made] = services.submitted
    assert made["prompt"] == "a\nb"
    assert made["stop"] == ["\n\n", "END"]
    assert made["seed"] == 2**63 - 1
    assert made["trace"] is True
    assert [variant["strategy"] for variant in made["variants"]] == ["greedy", "top_k"]
    assert made["variants"][1]["temperature"] == 0.5
    assert made["variants"][1]["top_k"] == 10


def test_several_samples_of_one_strategy_are_a_run(
    client: FlaskClient, services: StubServices
) -> None:
    answer = send(client, strategy=["sampling"], samples="3")
    assert answer.location == "/runs/new"
    assert services.submitted[0]["samples"] == 3


def test_several_models_make_a_variant_each_of_every_strategy(
    client: FlaskClient, services: StubServices
) -> None:
    ticks = {"model": ["", "tiny", "other", "tiny"], "strategy": ["greedy", "top_k"]}
    answer = send(client, **ticks, **{"top_k.top_k": "5"})
    assert (answer.status_code, answer.location) == (303, "/runs/new")
    [made] = services.submitted
    assert "model" not in made
    assert [(v["strategy"], v["model"]) for v in made["variants"]] == [
        ("greedy", "tiny"),
        ("greedy", "other"),
        ("top_k", "tiny"),
        ("top_k", "other"),
    ]
    assert [v.get("top_k") for v in made["variants"]] == [None, None, 5, 5]


def test_one_strategy_on_two_models_is_a_run(client: FlaskClient, services: StubServices) -> None:
    answer = send(client, model=["", "tiny", "other"])
    assert answer.location == "/runs/new"
    assert [v["model"] for v in services.submitted[0]["variants"]] == ["tiny", "other"]


def test_several_models_are_checkboxes_and_a_single_one_is_a_radio_button(
    client: FlaskClient, services: StubServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = client.get("/").text
    boxes = re.findall(r'<input type="(\w+)" name="model" value="(\w*)"', page)
    assert boxes == [("hidden", ""), ("checkbox", "tiny"), ("checkbox", "other")]
    assert re.findall(r'name="model" value="(\w+)"[^>]* checked', page) == ["tiny"]
    only = services.list_models()[:1]
    monkeypatch.setattr(services, "list_models", lambda: only)
    page = client.get("/").text
    assert re.findall(r'<input type="(\w+)" name="model" value="(\w*)"', page) == [
        ("radio", "tiny")
    ]


def test_a_rejected_form_keeps_every_model_and_the_number_of_texts(
    client: FlaskClient,
) -> None:
    page = send(
        client, prompt=" ", model=["", "other", "tiny"], strategy=["greedy", "top_k"], samples="3"
    ).text
    assert re.findall(r'name="model" value="(\w+)"[^>]* checked', page) == ["tiny", "other"]
    assert "Generate 8" in page  # greedy once a model, top-k three times


def test_an_error_of_one_variant_is_shown_at_its_strategy(client: FlaskClient) -> None:
    changes = {"top_k.top_k": "0", "model": ["", "tiny", "other"]}
    answer = send(client, strategy=["greedy", "top_k"], **changes)
    assert answer.status_code == 422
    assert 'id="error-top_k.top_k"' in answer.text
    assert 'id="error-strategy"' not in answer.text


def test_more_columns_than_a_run_can_have_are_rejected_with_a_message(client: FlaskClient) -> None:
    every = [spec.name for spec in STRATEGIES]
    answer = send(client, strategy=every, model=["", "tiny", "other", "third"])
    assert answer.status_code == 422
    assert "8 strategies on 3 models are 24 columns" in answer.text


def test_a_form_without_a_model_field_means_the_default_model(
    client: FlaskClient, services: StubServices
) -> None:
    client.post("/generate", data={"prompt": "Hello", "strategy": "greedy"})
    assert services.submitted[0]["model"] == "tiny"


def test_rejected_input_is_kept_and_every_bad_field_is_named(client: FlaskClient) -> None:
    answer = send(
        client,
        prompt="keep <me>",
        model="other",
        strategy=["greedy", "top_k"],
        samples="77",
        seed="word",
        stop="kept",
        trace="on",
        **{"top_k.temperature": "9", "top_k.top_k": "0", "min_p.min_p": "0.25"},
    )
    assert answer.status_code == 422
    page = answer.text
    assert "keep &lt;me&gt;" in page
    for kept in ("77", "word", "9", "0", "0.25"):
        assert f'value="{kept}"' in page
    assert re.search(r'value="other"[^>]* checked', page)
    assert re.search(r'name="trace" checked', page)
    assert re.findall(r'name="strategy" value="(\w+)" checked', page) == ["greedy", "top_k"]
    for name in ("samples", "seed", "top_k.temperature", "top_k.top_k"):
        assert f'id="error-{name}"' in page, name
        field = re.search(rf'<input[^>]* name="{re.escape(name)}"[^>]*>', page)
        assert field
        assert 'aria-invalid="true"' in field[0]
        assert f"error-{name}" in field[0]
        assert f'href="#{name}"' in page


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"strategy": []}, "strategy"),
        ({"strategy": ["beams"]}, "strategy"),
        ({"model": [""]}, "model"),
        ({"max_new_tokens": "inf"}, "max_new_tokens"),
        ({"seed": "1_0"}, "seed"),
        ({"max_new_tokens": "9" * 5000}, "max_new_tokens"),
        ({"stop": "x" * 65}, "stop"),
        ({"greedy.repetition_penalty": "0.5"}, "greedy.repetition_penalty"),
    ],
)
def test_an_invalid_field_has_its_message_beside_it(
    client: FlaskClient, services: StubServices, changes: dict[str, Any], name: str
) -> None:
    answer = send(client, **changes)
    assert answer.status_code == 422
    assert f'id="error-{name}"' in answer.text
    assert services.submitted == []


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (QueueFull("The queue is full.", retry_after_seconds=12), 503),
        (RateLimited("You have enough waiting.", retry_after_seconds=12), 429),
    ],
)
def test_a_busy_server_says_when_to_try_again_and_keeps_the_prompt(
    client: FlaskClient, services: StubServices, refusal: Exception, status: int
) -> None:
    services.refusal = refusal
    answer = send(client, prompt="kept text")
    assert answer.status_code == status
    assert answer.headers["Retry-After"] == "12"
    assert "about 12 s" in answer.text
    assert "kept text" in answer.text


def test_the_prompt_is_kept_during_a_database_outage(
    client: FlaskClient, services: StubServices
) -> None:
    services.is_away = True
    answer = send(client, prompt="kept text", model="other", strategy=["top_k"])
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
    assert "kept text" in answer.text
    assert re.search(r'name="model" value="other"[^>]* checked', answer.text)
    assert re.findall(r'name="strategy" value="(\w+)" checked', answer.text) == ["top_k"]
    assert "not loaded" not in answer.text  # it is unknown


@pytest.mark.parametrize("address", ["/", "/jobs/j1"])
def test_a_page_without_its_database_says_when_to_try_again(
    client: FlaskClient, services: StubServices, address: str
) -> None:
    services.is_away = True
    answer = client.get(address)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
    assert "The database is away." in answer.text
    assert "about 2 s" in answer.text
    assert ">Try again</a>" in answer.text


def test_repeating_a_job_on_a_full_queue_says_when_to_try_again(
    client: FlaskClient, services: StubServices
) -> None:
    services.refusal = QueueFull("The queue is full.", retry_after_seconds=12)
    answer = client.post("/jobs/j1/again")
    assert answer.status_code == 503
    assert "about 12 s" in answer.text
    assert ">Try again</a>" not in answer.text  # a link cannot repeat a form


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize(
    "address", ["/generate", "/jobs/j1/cancel", "/jobs/j1/delete", "/jobs/j1/again"]
)
def test_another_site_cannot_act(
    client: FlaskClient, services: StubServices, address: str, headers: dict[str, str]
) -> None:
    answer = client.post(address, data=FORM, headers=headers)
    assert answer.status_code == 403
    assert services.submitted == []
    assert services.calls == []


def test_our_own_origin_may_act(client: FlaskClient) -> None:
    for headers in ({"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin"}):
        assert client.post("/generate", data=FORM, headers=headers).status_code == 303


def test_a_page_gives_the_browser_its_owner_cookie(client: FlaskClient) -> None:
    assert "textmill_owner=" in client.get("/").headers["Set-Cookie"]
    assert "Set-Cookie" not in client.get("/").headers


def test_a_page_says_that_no_worker_is_running(client: FlaskClient, services: StubServices) -> None:
    hidden = re.compile(r'id="no-worker" hidden')
    assert hidden.search(client.get("/").text)
    assert hidden.search(client.get("/jobs/queued").text)
    services.workers = []
    assert not hidden.search(client.get("/").text)
    assert not hidden.search(client.get("/jobs/queued").text)
    assert hidden.search(client.get("/jobs/j1").text)


def test_a_job_page_refreshes_without_javascript_until_the_end(client: FlaskClient) -> None:
    refresh = '<noscript><meta http-equiv="refresh" content="2"></noscript>'
    assert refresh in client.get("/jobs/queued").text
    assert refresh not in client.get("/jobs/j1").text


def test_a_queued_job_shows_its_position(client: FlaskClient) -> None:
    page = client.get("/jobs/queued").text
    assert "Number 3 in the queue; about 4 s" in page


def test_a_running_job_shows_its_progress_and_rate(
    client: FlaskClient, services: StubServices
) -> None:
    began = datetime.now(UTC) - timedelta(seconds=10)
    running = job("running", "running", created_at=began.isoformat())
    running["timings"] |= {"first_token_ms": 1000}
    services.jobs["running"] = running
    assert re.search(r"41/64 tokens · 4\.[0-9] tokens/s", client.get("/jobs/running").text)


@pytest.mark.parametrize(
    ("status", "attempt", "is_told"),
    [
        ("queued", 0, False),
        ("queued", 1, True),
        ("running", 1, False),
        ("running", 2, True),
        ("succeeded", 2, False),
    ],
)
def test_a_restarted_job_says_so(
    client: FlaskClient, services: StubServices, status: str, attempt: int, is_told: bool
) -> None:
    services.jobs["odd"] = job("odd", status, attempt=attempt)
    page = client.get("/jobs/odd").text
    assert ('id="restarted" role="status" hidden' not in page) == is_told


def test_every_parameter_has_the_title_and_description_of_the_strategies(
    client: FlaskClient,
) -> None:
    page = html.unescape(client.get("/").text)
    for strategy in strategy_views():
        for parameter in strategy["parameters"]:
            if parameter["name"] in ("logit_bias", "dry_sequence_breakers"):  # of the API alone
                continue
            assert parameter["title"] in page
            assert parameter["description"] in page


def test_a_form_from_a_job_passes_on_what_it_cannot_show(
    client: FlaskClient, services: StubServices
) -> None:
    bias, breakers = {"5": 1.5, "7": -100.0}, ["\n", "—"]
    own = {"top_p": 0.8, "logit_bias": bias, "dry_sequence_breakers": breakers}
    services.jobs["mine"] = job("mine", "succeeded", strategy="custom", parameters=own)
    page = client.get("/?from=mine").text
    hidden = dict(re.findall(r'<input type="hidden" name="(custom\.\w+)" value="([^"]*)">', page))
    assert len(hidden) == 2
    fields = {name: html.unescape(text) for name, text in hidden.items()}
    send(client, strategy=["custom"], **fields)
    [made] = services.submitted
    assert (made["logit_bias"], made["dry_sequence_breakers"]) == (bias, breakers)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', "7"])
def test_a_kept_value_that_was_changed_is_rejected_beside_it(
    client: FlaskClient, services: StubServices, text: str
) -> None:
    answer = send(client, strategy=["custom"], **{"custom.logit_bias": text})
    assert answer.status_code == 422
    assert 'id="error-custom.logit_bias"' in answer.text
    assert services.submitted == []


def test_the_form_starts_from_a_job(client: FlaskClient) -> None:
    page = client.get("/?from=j1").text
    assert re.findall(r'name="strategy" value="(\w+)" checked', page) == ["top_k"]
    assert 'name="seed"' in page
    assert re.search(r'name="seed"[^>]* value="7"', page)
    assert "\\n\\n</textarea>" in page
    assert " and &lt;script" not in page
    assert " and &lt;script" in client.get("/?from=j1&continue=1").text
    gone = client.get("/?from=gone")
    assert gone.status_code == 200
    assert "not stored any more" in gone.text


def test_reloading_a_rejected_form_shows_the_form(client: FlaskClient) -> None:
    assert client.get("/generate").location == "/"


def test_run_again_repeats_the_job_with_a_new_seed(
    client: FlaskClient, services: StubServices
) -> None:
    answer = client.post("/jobs/j1/again")
    assert (answer.status_code, answer.location) == (303, "/jobs/new")
    [made] = services.submitted
    assert "seed" not in made
    assert made["prompt"] == NASTY
    assert made["top_k"] == 10


def test_cancel_and_delete_redirect(client: FlaskClient, services: StubServices) -> None:
    assert client.post("/jobs/queued/cancel").location == "/jobs/queued"
    assert client.post("/jobs/j1/cancel").location == "/jobs/j1"  # it ended first: no error
    assert client.post("/jobs/j1/delete").location == "/history"
    assert services.calls == [("cancel", "queued"), ("cancel", "j1"), ("delete", "j1")]


def test_an_error_is_a_page(client: FlaskClient) -> None:
    answer = client.get("/jobs/nope")
    assert answer.status_code == 404
    assert "Nothing is stored under that id." in answer.text
    assert answer.mimetype == "text/html"
