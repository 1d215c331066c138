"""Budgets at the API and on the page, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites, bad_fields, problem
from textmill.backend.access.visitors import HEADER
from textmill.core.access.keys import KeyStore
from textmill.core.access.principals import PRIORITY, READ, SUBMIT
from textmill.core.database.access_tables import Usage
from textmill.core.database.connections import reading, writing
from textmill.core.database.tables import Job

BODY = {"prompt": "a quick zebra", "max_new_tokens": 7}  # orders ten tokens
SIX = {"strategy": "sampling", "samples": 6}
FORM = {
    "prompt": "a quick zebra",
    "model": "tiny",
    "strategy": "greedy",
    "greedy.repetition_penalty": "1",
    "samples": "1",
    "max_new_tokens": "7",
    "seed": "",
    "stop": "",
}


def open_site(make_site: Sites, **settings: Any) -> Site:
    hosts = {"TEXTMILL_ALLOWED_HOSTS": "demo.example.org", "TEXTMILL_TRUSTED_PROXIES": "1"}
    named = {f"TEXTMILL_{name}": str(value) for name, value in settings.items()}
    site = make_site(**({"TEXTMILL_ACCESS": "demo"} | hosts | named))  # type: ignore[arg-type]
    site.beat(models=["tiny", "other"])
    return site


def visitor(site: Site, address: str = "192.0.2.1") -> tuple[FlaskClient, dict[str, str]]:
    client = site.app.test_client(use_cookies=False)
    where = {"X-Forwarded-For": address}
    token = client.get(JOBS, headers=where).headers[HEADER]
    return client, {HEADER: token, **where}


def test_a_day_is_spent_and_the_answer_says_when_to_come_back(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_TOKENS_PER_DAY=25, VISITOR_TOKENS_PER_MINUTE=0)
    client, who = visitor(site)
    first = client.post(JOBS, json=BODY, headers=who)
    assert first.status_code == 202
    assert first.headers["RateLimit-Policy"] == '"day";q=25;w=86400'
    assert first.headers["RateLimit"].startswith('"day";r=15;t=')
    assert client.post(JOBS, json=BODY, headers=who).status_code == 202
    refused = client.post(JOBS, json=BODY, headers=who)
    document = problem(refused, 429)
    assert "5 are left and this request orders 10" in document["detail"]
    assert "hours" in document["detail"]
    assert 86_000 < int(refused.headers["Retry-After"]) <= 86_400
    assert refused.headers["RateLimit"].startswith('"day";r=5;t=')
    other, them = visitor(site, "198.51.100.7")
    assert other.post(JOBS, json=BODY, headers=them).status_code == 202


def test_a_window_that_is_over_begins_again(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_TOKENS_PER_MINUTE=15)
    client, who = visitor(site)
    assert client.post(JOBS, json=BODY, headers=who).status_code == 202
    assert client.post(JOBS, json=BODY, headers=who).status_code == 429
    with writing(site.services.store.engine) as connection:
        ago = Usage.began_at - 61_000
        connection.execute(update(Usage).where(Usage.window == "minute").values(began_at=ago))
    assert client.post(JOBS, json=BODY, headers=who).status_code == 202


def test_a_repeated_request_is_charged_once(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_TOKENS_PER_DAY=15)
    client, who = visitor(site)
    for _ in range(3):
        again = client.post(JOBS, json=BODY, headers={**who, "Idempotency-Key": "k"})
        assert again.status_code == 202


def test_invented_visitors_of_one_address_share_four_budgets(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_TOKENS_PER_DAY=10)
    answers = []
    for number in range(6):
        client, who = visitor(site, f"2001:db8::{number}")  # one network of IPv6
        answers.append(client.post(JOBS, json=BODY, headers=who).status_code)
    assert answers == [202, 202, 202, 202, 429, 429]
    spoofed = {**visitor(site)[1], "X-Forwarded-For": "203.0.113.9, 2001:db8::77"}
    assert client.post(JOBS, json=BODY, headers=spoofed).status_code == 429


def test_requests_at_the_same_time_never_exceed_the_budget(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_TOKENS_PER_DAY=50, VISITOR_MAX_QUEUED=0)
    _, who = visitor(site)

    def post(_: int) -> int:
        return (
            site.app.test_client(use_cookies=False).post(JOBS, json=BODY, headers=who).status_code
        )

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(post, range(16)))
    assert answers == [202] * 5 + [429] * 11
    with reading(site.services.store.engine) as connection:
        stored = connection.execute(select(func.count()).select_from(Job)).scalar_one()
        charged = connection.execute(
            select(Usage.tokens).where(Usage.subject.like("visitor:%"), Usage.window == "day")
        ).scalar_one()
    assert (stored, charged) == (5, 50)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"prompt": "a", "max_new_tokens": 100}, JOBS),
        ({"prompt": "a", "max_new_tokens": 30, "strategy": "beam", "num_beams": 4}, JOBS),
        ({"prompt": "a", "max_new_tokens": 20, "variants": [SIX]}, RUNS),
    ],
)  # fmt: skip
def test_one_request_is_bounded(make_site: Sites, body: dict[str, Any], path: str) -> None:
    site = open_site(make_site, MAX_TOKENS_PER_REQUEST=100)
    client, who = visitor(site)
    assert "max_new_tokens" in bad_fields(client.post(path, json=body, headers=who))
    assert site.count_rows() == (0, 0)


def test_waiting_jobs_are_bounded_for_a_visitor_and_for_an_address(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_MAX_QUEUED=2)
    client, who = visitor(site)
    answers = [client.post(JOBS, json=BODY, headers=who).status_code for _ in range(3)]
    assert answers == [202, 202, 429]
    same = [visitor(site) for _ in range(5)]
    answers = [c.post(JOBS, json=BODY, headers=h).status_code for c, h in same for _ in range(2)]
    assert answers.count(202) == 6  # eight of the address, with the two above
    run = {"prompt": "a", "variants": [{"strategy": "sampling", "samples": 3}]}
    other, them = visitor(site, "198.51.100.7")
    assert other.post(RUNS, json=run, headers=them).status_code == 429


def test_a_quarter_of_the_queue_is_for_those_who_have_nothing_waiting(make_site: Sites) -> None:
    site = open_site(make_site, MAX_QUEUED=8, ACCESS="team")
    keys = KeyStore(site.services.store.engine)
    anna, bert = (
        {"Authorization": f"Bearer {keys.create(name, [READ, SUBMIT])[1]}"}
        for name in ("anna", "bert")
    )
    client = site.app.test_client(use_cookies=False)
    answers = [client.post(JOBS, json=BODY, headers=anna).status_code for _ in range(8)]
    assert answers == [202] * 6 + [503] * 2
    assert client.post(JOBS, json=BODY, headers=bert).status_code == 202
    assert client.post(JOBS, json=BODY, headers=bert).status_code == 503


def test_a_keys_own_limit_counts(make_site: Sites) -> None:
    site = open_site(make_site, ACCESS="team")
    token = KeyStore(site.services.store.engine).create("a", [SUBMIT], tokens_per_day=15)[1]
    client, who = site.app.test_client(use_cookies=False), {"X-API-Key": token}
    answers = [client.post(JOBS, json=BODY, headers=who).status_code for _ in range(2)]
    assert answers == [202, 429]


def test_stored_texts_are_bounded(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_MAX_STORED_BYTES=20)
    client, who = visitor(site)
    assert client.post(JOBS, json=BODY, headers=who).status_code == 202
    assert client.post(JOBS, json=BODY, headers=who).status_code == 202
    assert "export it" in problem(client.post(JOBS, json=BODY, headers=who), 429)["detail"]


def test_a_model_that_no_worker_serves_is_refused_or_waited_for_briefly(make_site: Sites) -> None:
    site = open_site(make_site, UNSERVED_SECONDS=0)
    site.beat(models=["tiny"])
    client, who = visitor(site)
    refused = client.post(JOBS, json={**BODY, "model": "other"}, headers=who)
    assert "No worker serves the model other" in problem(refused, 503)["detail"]
    assert client.post(JOBS, json={**BODY, "model": "tiny"}, headers=who).status_code == 202
    waiting = open_site(make_site, UNSERVED_SECONDS=30)
    waiting.beat(models=["tiny"])
    client, who = visitor(waiting)
    made = client.post(JOBS, json={**BODY, "model": "other"}, headers=who).get_json()["id"]
    job = waiting.services.history.job(made)
    assert job.deadline_at - job.created_at == 30_000


def test_a_models_queue_is_bounded(make_site: Sites) -> None:
    site = open_site(make_site, MAX_QUEUED_PER_MODEL=1, ACCESS="local")
    first = [site.client.post(JOBS, json={**BODY, "model": "tiny"}).status_code for _ in range(2)]
    assert first == [202, 503]
    assert site.client.post(JOBS, json={**BODY, "model": "other"}).status_code == 202


def test_the_page_says_when_to_come_back_and_keeps_the_prompt(make_site: Sites) -> None:
    site = open_site(make_site, VISITOR_TOKENS_PER_MINUTE=15)
    browser = site.app.test_client()
    assert browser.post("/generate", data=FORM).status_code == 303
    refused = browser.post("/generate", data={**FORM, "max_new_tokens": "8"})
    assert refused.status_code == 429
    assert "Come back in" in refused.text
    assert "a quick zebra" in refused.text
    assert 'value="8"' in refused.text


def test_a_job_has_a_deadline_of_its_own_within_the_settings(make_site: Sites) -> None:
    site = make_site(TEXTMILL_DEADLINE_SECONDS="100")
    for asked, given in ((20, 20_000), (5_000, 100_000), (None, 100_000)):
        made = site.submit("a", deadline_seconds=asked)
        job = site.services.history.job(made["id"])
        assert job.deadline_at - job.created_at == given
    run = {"prompt": "a", "deadline_seconds": 7, "variants": [{}, {"deadline_seconds": 8}]}
    jobs = site.client.post(RUNS, json=run).get_json()["jobs"]
    records = [site.services.history.job(job["id"]) for job in jobs]
    assert [job.deadline_at - job.created_at for job in records] == [7_000, 8_000]
    assert bad_fields(site.client.post(JOBS, json={**BODY, "deadline_seconds": 0})) == {
        "deadline_seconds"
    }


def test_a_disk_that_is_nearly_full_takes_no_new_jobs(make_site: Sites) -> None:
    site = make_site(TEXTMILL_MIN_FREE_MIB=str(1 << 24))
    if site.services.store.engine.dialect.name != "sqlite":
        pytest.skip("the server of PostgreSQL may have another disk")
    assert problem(site.client.post(JOBS, json=BODY), 503)["code"] == "disk_nearly_full"
    assert site.client.get(JOBS).status_code == 200
    assert "disk is nearly full" in site.client.get("/queue").text
    assert site.count_rows() == (0, 0)


def test_the_priority_1_needs_a_key_with_that_scope(make_site: Sites) -> None:
    site = open_site(make_site)
    client, guest = visitor(site)
    keys = KeyStore(site.services.store.engine)
    plain, urgent = (
        {"Authorization": f"Bearer {keys.create(name, scopes)[1]}"}
        for name, scopes in (("plain", [READ, SUBMIT]), ("urgent", [READ, SUBMIT, PRIORITY]))
    )
    first = {**BODY, "priority": 1}
    for who in (guest, plain):
        assert (
            "scope priority" in problem(client.post(JOBS, json=first, headers=who), 403)["detail"]
        )
        run = {"prompt": "a", "variants": [{}, {"priority": 1}]}
        assert client.post(RUNS, json=run, headers=who).status_code == 403
        later = client.post(JOBS, json={**BODY, "priority": -1}, headers=who)
        assert later.get_json()["priority"] == -1
    normal = client.post(JOBS, json=BODY, headers=guest).get_json()
    wanted = client.post(JOBS, json=first, headers=urgent).get_json()
    assert (normal["priority"], wanted["priority"]) == (0, 1)
    assert [site.claim().id for _ in range(2)] == [wanted["id"], normal["id"]]
    assert site.claim().priority == -1
    for wrong in (2, -2, 0.5, "1", True):
        refused = client.post(JOBS, json={**BODY, "priority": wrong}, headers=urgent)
        assert bad_fields(refused) == {"priority"}


def test_the_history_shows_starred_jobs_alone(make_site: Sites) -> None:
    site = make_site()
    kept, other = site.write("kept", " text"), site.write("other", " text")
    assert site.client.post(f"/jobs/{kept['id']}/star").status_code == 303
    assert "★ Starred" in site.client.get(f"/jobs/{kept['id']}").text

    def listed(query: str) -> list[str]:
        return [job["prompt"] for job in site.client.get(f"{JOBS}?{query}").get_json()["items"]]

    assert listed("starred=true") == ["kept"]
    assert listed("starred=false") == ["other"]
    assert listed("starred=true&q=text") == ["kept"]
    assert listed("starred=true&q=other") == []
    page = site.client.get("/history?starred=true").text
    assert kept["id"] in page
    assert other["id"] not in page
    assert bad_fields(site.client.get(f"{JOBS}?starred=1")) == {"starred"}
    assert site.client.post(f"/jobs/{kept['id']}/unstar").status_code == 303
    assert listed("starred=true") == []
