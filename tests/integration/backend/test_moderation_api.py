"""A refused prompt at the API, in a run, on the page and in the audit log, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites, problem
from tests.integration.backend.test_access_matrix import FORM
from textmill.core.access.audit import latest

REFUSED = "a wombat in the garden"


@pytest.fixture
def site(make_site: Sites, tmp_path: Path) -> Site:
    words = tmp_path / "words.txt"
    words.write_text("fox\nwombat\n")
    made = make_site(
        TEXTMILL_ACCESS="demo",
        TEXTMILL_ALLOWED_HOSTS="demo.example.org",
        TEXTMILL_MODERATION=f"words:{words}",
    )
    made.beat(models=["tiny", "other"])
    return made


def test_a_refused_prompt_is_422_and_nothing_is_stored(site: Site) -> None:
    key = {"Idempotency-Key": "k"}
    document = problem(site.client.post(JOBS, json={"prompt": REFUSED}, headers=key), 422)
    assert document["code"] == "prompt_refused"
    assert [error["field"] for error in document["errors"]] == ["prompt"]
    run = site.client.post(RUNS, json={"prompt": REFUSED, "variants": [{}, {}]})
    assert problem(run, 422)["code"] == "prompt_refused"
    completion = site.client.post("/v1/completions", json={"prompt": ["fine", REFUSED]})
    assert completion.status_code == 400
    assert completion.get_json()["error"]["code"] == "prompt_refused"
    assert site.count_rows() == (0, 0)
    assert site.client.post(JOBS, json={"prompt": "fine"}, headers=key).status_code == 202


def test_the_audit_log_says_who_and_why_but_not_what(site: Site) -> None:
    site.client.post(JOBS, json={"prompt": REFUSED})
    (row,) = latest(site.services.store.engine, 10)
    assert row.action == "refuse_prompt"
    assert row.principal.startswith("visitor:")
    assert row.reason == "line 2 of the word list"
    assert "wombat" not in str(row)


def test_the_page_keeps_what_was_typed(site: Site) -> None:
    answer = site.client.post("/generate", data={**FORM, "prompt": REFUSED})
    assert answer.status_code == 422
    assert "do not allow this prompt" in answer.text
    assert REFUSED in answer.text
