"""Submitting, reading, waiting, canceling, deleting, runs, and what describes the API."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from jsonschema import Draft202012Validator
from markupsafe import escape
from sqlalchemy import event, text

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites, bad_fields, problem
from textmill.core.events import done
from textmill.core.problems import Subject, report, solve

DOCUMENT = "/api/v1/openapi.json"


def test_a_job_is_accepted_and_its_resolved_parameters_reproduce_it(site: Site) -> None:
    answer = site.client.post(JOBS, json={"prompt": "a", "strategy": "top_k"})
    job = answer.get_json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == job["links"]["self"]
    assert job["usage"] == {"prompt_tokens": 1, "completion_tokens": 0}
    again = site.submit("a", strategy="top_k", **job["parameters"])
    assert again["parameters"] == job["parameters"]


def test_jobs_are_accepted_before_any_worker_has_loaded_a_model(make_site: Sites) -> None:
    site = make_site(has_card=False)
    assert site.submit("w " * 150)["usage"]["prompt_tokens"] is None


def test_the_same_key_and_body_is_the_same_job(site: Site) -> None:
    headers = {"Idempotency-Key": "k 1"}
    for path, body in ((JOBS, {"prompt": "a"}), (RUNS, {"prompt": "a", "variants": [{}, {}]})):
        first, second = (site.client.post(path, json=body, headers=headers) for _ in range(2))
        assert first.status_code == second.status_code == 202
        assert first.get_json()["id"] == second.get_json()["id"]
        other = site.client.post(path, json={**body, "seed": 1}, headers=headers)
        assert bad_fields(other) == {"Idempotency-Key"}
    assert site.count_rows() == (3, 1)


def test_the_same_key_at_the_same_moment_is_one_job(site: Site) -> None:
    together = threading.Barrier(6)

    def submit(_: int) -> str:
        client = site.app.test_client()
        together.wait()
        answer = client.post(JOBS, json={"prompt": "a"}, headers={"Idempotency-Key": "k"})
        return str(answer.get_json()["id"])

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(submit, range(6)))) == 1
    assert site.count_rows() == (1, 0)


def test_a_wait_returns_when_the_job_ends(site: Site) -> None:
    job = site.submit()
    held = site.claim()
    is_read = threading.Event()
    briefs = site.services.history.briefs

    def noting_briefs(job_ids: Sequence[str]) -> object:
        is_read.set()
        return briefs(job_ids)

    site.services.history.briefs = noting_briefs  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.app.test_client().get, f"{job['links']['self']}?wait=30")
        assert is_read.wait(20)
        site.finish(held)
        site.services.bus.publish([done(held.id, held.attempt, 5, 1)])
        assert waiting.result(20).get_json()["status"] == "succeeded"


def test_a_wait_returns_at_its_time_out_and_at_once_for_an_ended_job(site: Site) -> None:
    job = site.submit()
    path = job["links"]["self"]
    assert site.client.get(f"{path}?wait=0.05").get_json()["status"] == "queued"
    site.finish(site.claim())
    assert site.client.get(f"{path}?wait=30").get_json()["status"] == "succeeded"


def test_a_wait_for_a_job_that_is_deleted_is_404(site: Site) -> None:
    job = site.submit()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.app.test_client().get, f"{job['links']['self']}?wait=30")
        assert site.client.delete(job["links"]["self"]).status_code == 204
        problem(waiting.result(20), 404)


def test_an_unchanged_job_is_304(site: Site) -> None:
    job = site.submit()
    path = job["links"]["self"]
    tag = site.client.get(path).headers["ETag"]
    same = site.client.get(path, headers={"If-None-Match": tag})
    assert (same.status_code, same.get_data()) == (304, b"")
    site.claim()
    assert site.client.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_head_has_the_headers_and_options_the_methods(site: Site) -> None:
    path = site.submit()["links"]["self"]
    for address in (path, JOBS, f"{JOBS}/export", "/api/v1/models", DOCUMENT, "/healthz"):
        head = site.client.head(address)
        assert (head.status_code, head.get_data()) == (200, b""), address
    options = site.client.options(path)
    assert options.status_code == 200
    assert set(options.headers["Allow"].split(", ")) == {"GET", "HEAD", "DELETE", "OPTIONS"}


def test_cancel_keeps_the_text_and_delete_removes_it(site: Site) -> None:
    queued = site.submit()
    canceled = site.client.post(queued["links"]["cancel"])
    assert (canceled.status_code, canceled.get_json()["status"]) == (202, "canceled")
    running = site.submit()
    site.save(site.claim(), " so far")
    answer = site.client.post(running["links"]["cancel"]).get_json()
    assert (answer["cancel_requested"], answer["text"]) == (True, " so far")
    for job in (queued, running):
        assert site.client.delete(job["links"]["self"]).status_code == 204
        problem(site.client.get(job["links"]["self"]), 404)
        problem(site.client.delete(job["links"]["self"]), 404)
    assert site.count_rows() == (0, 0)


def test_a_trace_is_available_if_it_was_requested_and_the_job_has_ended(site: Site) -> None:
    job = site.submit(trace=True)
    problem(site.client.get(job["links"]["trace"]), 404)
    site.finish(site.claim(), trace=[{"text": "x"}])
    assert site.client.get(job["links"]["trace"]).get_json()["tokens"] == [{"text": "x"}]
    problem(site.client.get(site.write("a", " b")["links"]["trace"]), 404)


def test_a_run_has_its_jobs_in_the_order_of_variants_and_samples(site: Site) -> None:
    body = {
        "prompt": "a",
        "seed": 5,
        "variants": [{"strategy": "sampling", "samples": 2}, {"model": "other"}],
    }
    answer = site.client.post(RUNS, json=body)
    run = answer.get_json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == run["links"]["self"]
    jobs = site.client.get(run["links"]["self"]).get_json()["jobs"]
    assert [(j["variant_index"], j["sample_index"]) for j in jobs] == [(0, 0), (0, 1), (1, 0)]
    assert [j["parameters"]["seed"] for j in jobs[:2]] == [5, 6]
    for job in jobs:
        site.client.delete(job["links"]["self"])
    problem(site.client.get(run["links"]["self"]), 404)


def test_models_strategies_queue_and_tokens(site: Site) -> None:
    site.beat()
    tiny, other = site.client.get("/api/v1/models").get_json()
    assert (tiny["default"], tiny["loaded_by"], tiny["context_length"]) == (True, 1, 128)
    assert (other["loaded_by"], other["context_length"]) == (0, None)
    names = {item["name"] for item in site.client.get("/api/v1/strategies").get_json()}
    assert names >= {"greedy", "sampling", "top_k", "top_p", "min_p", "typical", "custom"}
    site.submit()
    queue = site.client.get("/api/v1/queue").get_json()
    assert (queue["depth"], queue["running"], queue["redis"]) == (1, 0, "ok")
    assert [worker["id"] for worker in queue["workers"]] == ["w1"]
    tokens = site.client.post("/api/v1/tokenize", json={"text": "a zebra"}).get_json()
    assert [token["text"] for token in tokens["tokens"]] == ["a", " zebra"]
    assert tokens["count"] == 2


def test_readyz_needs_a_worker_and_a_writable_database(site: Site) -> None:
    assert site.client.get("/healthz").status_code == 200
    lonely = site.client.get("/readyz")
    assert lonely.status_code == 503
    assert lonely.get_json()["workers"] == "none seen within 30 s"
    site.beat()
    assert site.client.get("/readyz").get_json() == {
        "status": "ok", "database": "ok", "workers": "ok", "redis": "ok",
    }  # fmt: skip


def test_what_is_left_out_is_reported_with_its_reason_everywhere(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.beat()
    engine = site.services.store.engine
    subjects = {
        Subject("here", "model", "other"): "The tensor <b>wte.weight</b> is missing.",
        Subject("here", "worker", "worker-1"): "was ended by SIGSEGV.",
    }
    for subject, reason in subjects.items():
        report(engine, subject, reason, 60.0)
    broken = "The models file models.toml is not valid TOML."
    monkeypatch.setattr(type(site.services.queue._catalog), "problem", broken)
    ready = site.client.get("/readyz")
    assert ready.status_code == 200
    sentences = [
        "The model other is left out: The tensor <b>wte.weight</b> is missing.",
        "The process worker-1 was ended by SIGSEGV.",
        broken,
    ]
    assert ready.get_json()["problems"] == sentences
    told = site.client.get("/api/v1/queue").get_json()["problems"]
    assert [(item["kind"], item["name"]) for item in told] == [
        ("model", "other"),
        ("worker", "worker-1"),
        ("models_file", "models file"),
    ]
    page = site.client.get("/queue").text
    assert all(str(escape(sentence)) in page for sentence in sentences)
    for subject in subjects:
        solve(engine, subject)
    monkeypatch.setattr(type(site.services.queue._catalog), "problem", None)
    assert "problems" not in site.client.get("/readyz").get_json()
    assert site.client.get("/api/v1/queue").get_json()["problems"] == []
    assert 'id="problems" hidden' in site.client.get("/queue").text


def test_reasons_for_visitors_name_no_folder_of_the_server(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.beat()
    reason = "The weights in /srv/secret/tiny are incomplete."
    report(site.services.store.engine, Subject("here", "model", "other"), reason, 60.0)
    broken = "The models file /srv/secret/models.toml is not valid TOML."
    monkeypatch.setattr(type(site.services.queue._catalog), "problem", broken)
    for path in ("/readyz", "/api/v1/queue", "/queue"):
        shown = site.client.get(path).text
        assert "secret" not in shown, path
        assert "tiny are incomplete" in shown
        assert "models.toml is not valid TOML" in shown


def test_a_read_only_database_is_503_everywhere_and_says_which_part(site: Site) -> None:
    site.beat()
    engine = site.services.store.engine
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only = ON"))
    else:
        name = engine.url.database
        with engine.connect() as connection:
            statement = f"ALTER DATABASE {name} SET default_transaction_read_only = on"
            connection.execute(text(statement))
            connection.commit()
    engine.dispose()
    answer = site.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.get_json()["database"] != "ok"
    assert answer.get_json()["workers"] == "ok"
    assert int(answer.headers["Retry-After"]) > 0
    problem(site.client.post(JOBS, json={"prompt": "a"}), 503)


def test_a_database_without_tables_is_not_ready_instead_of_500(site: Site) -> None:
    with site.services.store.engine.connect() as connection:
        connection.execute(text("DROP TABLE workers"))
        connection.commit()
    answer = site.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.get_json()["workers"] != "ok"
    assert "textmill_database_up 0.0" in site.client.get("/metrics").text


def test_readyz_without_redis_is_degraded_and_stays_200(make_site: Sites) -> None:
    site = make_site(TEXTMILL_REDIS_URL="redis://127.0.0.1:1/0")
    site.beat()
    answer = site.client.get("/readyz")
    assert (answer.status_code, answer.get_json()["redis"]) == (200, "degraded")
    assert site.client.get("/api/v1/queue").get_json()["redis"] == "degraded"
    assert site.submit()["status"] == "queued"


def test_metrics_contain_the_queue_and_the_responses(site: Site) -> None:
    site.submit()
    page = site.client.get("/metrics").text
    assert "textmill_queue_depth 1.0" in page
    assert 'route="/api/v1/jobs",status="202"' in page
    assert "textmill_redis_up 1.0" in page


def test_the_openapi_document_describes_every_route_and_its_schemas_are_schemas(
    site: Site,
) -> None:
    document = site.client.get(DOCUMENT).get_json()
    assert document["openapi"].startswith("3.1")
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert name
    routes = {
        (rule.rule.removeprefix("/api/v1").replace("<", "{").replace(">", "}"), method.lower())
        for rule in site.app.url_map.iter_rules()
        if rule.rule.startswith("/api/v1/")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(p, method) for p, calls in document["paths"].items() for method in calls}
    assert routes == described
    ids = [call["operationId"] for calls in document["paths"].values() for call in calls.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("path", "name"),
    [("", "JobPage"), ("/{id}", "JobView"), ("/api/v1/queue", "QueueView"),
     ("/api/v1/models", "ModelView"), ("/api/v1/strategies", "StrategyView")],
)  # fmt: skip
def test_responses_match_the_openapi_document(shared_site: Site, path: str, name: str) -> None:
    job = shared_site.submit()
    full = path if path.startswith("/api") else JOBS + path.format(id=job["id"])
    schemas = shared_site.client.get(DOCUMENT).get_json()["components"]["schemas"]
    answer = shared_site.client.get(full).get_json()
    validator = Draft202012Validator({**schemas[name], "components": {"schemas": schemas}})
    for item in answer if isinstance(answer, list) else [answer]:
        validator.validate(item)
