"""The contract over HTTP, with a real worker on a tiny model."""

from __future__ import annotations

import pytest

from tests.acceptance.stack import Stack, parse_events

JOB_KEYS = {
    "id", "run_id", "status", "model", "prompt", "strategy", "parameters", "text", "finish_reason",
    "usage", "queue", "error", "timings", "model_revision", "attempt", "created_at", "started_at",
    "finished_at", "links",
}  # fmt: skip


def test_a_job_is_accepted_written_and_found_again(stack: Stack) -> None:
    answer = stack.request("POST", "/api/v1/jobs", {"prompt": "The quick zebra"})
    job = answer.json
    assert answer.status == 202
    assert answer.headers["Location"] == job["links"]["self"]
    assert job.keys() >= JOB_KEYS
    assert job["strategy"] == "greedy"
    assert job["parameters"]["max_new_tokens"] == 64
    done = stack.wait(job["id"])
    assert done["status"] == "succeeded"
    assert done["finish_reason"] in {"stop", "length"}
    assert done["usage"]["prompt_tokens"] > 0
    assert done["timings"]["total_ms"] >= done["timings"]["queued_ms"] >= 0
    assert done["queue"] is None
    found = stack.request("GET", "/api/v1/jobs?q=zebra").json["items"]
    assert [item["id"] for item in found] == [job["id"]]


@pytest.mark.parametrize(
    "request_body",
    [
        {"strategy": "greedy"},
        {"strategy": "sampling"},
        {"strategy": "top_k"},
        {"strategy": "top_p"},
        {"strategy": "min_p"},
        {"strategy": "typical"},
        {"strategy": "top_k", "model": "tiny-neo", "repetition_penalty": 1.3},
        {
            "strategy": "custom",
            "top_k": 40,
            "top_p": 0.9,
            "frequency_penalty": 0.4,
            "logit_bias": {"5": 2.5, "7": -100},
            "xtc_probability": 0.5,
            "dry_multiplier": 0.8,
            "dry_sequence_breakers": ["\n", "é"],
        },
    ],
)
def test_the_resolved_parameters_sent_back_reproduce_the_text(
    stack: Stack, request_body: dict[str, object]
) -> None:
    first = stack.generate(**request_body, max_new_tokens=24)
    assert first["status"] == "succeeded", first
    again = stack.generate(strategy=first["strategy"], model=first["model"], **first["parameters"])
    assert again["text"] == first["text"]
    assert again["parameters"] == first["parameters"]


def test_the_identities_of_the_strategies_hold(stack: Stack) -> None:
    greedy = stack.generate(strategy="greedy")["text"]
    assert stack.generate(strategy="top_k", top_k=1)["text"] == greedy
    for strategy in ("sampling", "top_k", "top_p", "min_p", "typical"):
        assert stack.generate(strategy=strategy, temperature=0)["text"] == greedy
    models = stack.request("GET", "/api/v1/models").json
    size = next(m["vocabulary_size"] for m in models if m["default"])
    plain = {"temperature": 1.3, "seed": 11}
    sampled = stack.generate(strategy="sampling", **plain)["text"]
    assert sampled != greedy
    for cut in (
        {"strategy": "top_k", "top_k": size},
        {"strategy": "top_p", "top_p": 1.0},
        {"strategy": "min_p", "min_p": 0.0},
        {"strategy": "typical", "typical_p": 1.0},
        {"strategy": "custom"},
    ):
        assert stack.generate(**cut, **plain)["text"] == sampled


def test_custom_with_one_filter_writes_the_text_of_the_named_strategy(stack: Stack) -> None:
    shared = {"temperature": 1.2, "seed": 4}
    for strategy, options in (("top_k", {"top_k": 7}), ("typical", {"typical_p": 0.5})):
        named = stack.generate(strategy=strategy, **options, **shared)["text"]
        assert stack.generate(strategy="custom", **options, **shared)["text"] == named


def test_a_bias_of_minus_100_keeps_a_token_out_of_the_text(stack: Stack) -> None:
    plain = stack.generate(strategy="custom", temperature=0, trace=True)
    first = stack.request("GET", plain["links"]["trace"]).json["tokens"][0]["id"]
    bias = {str(first): -100}
    job = stack.generate(strategy="custom", temperature=0, trace=True, logit_bias=bias)
    assert job["parameters"]["logit_bias"] == bias
    tokens = stack.request("GET", job["links"]["trace"]).json["tokens"]
    assert first not in {token["id"] for token in tokens}
    size = stack.request("GET", "/api/v1/models").json[0]["vocabulary_size"]
    body = {"prompt": "a", "strategy": "custom", "logit_bias": {str(size): 1}}
    answer = stack.request("POST", "/api/v1/jobs", body)
    assert answer.status == 422
    assert answer.json["errors"][0]["field"] == "logit_bias"


def test_a_stop_string_ends_the_text_and_never_shows(stack: Stack) -> None:
    whole = stack.generate(strategy="sampling", seed=3, max_new_tokens=60)["text"]
    stop = whole[10:14]
    job = stack.generate(strategy="sampling", seed=3, max_new_tokens=60, stop=[stop])
    assert job["text"] == whole[: whole.index(stop)]
    assert job["finish_reason"] == "stop"
    streamed = stack.events(job["links"]["events"])
    assert "".join(d["text"] for _, name, d in streamed if name == "token") == job["text"]


def test_a_stream_cut_anywhere_resumes_with_nothing_lost_or_doubled(stack: Stack) -> None:
    job = stack.submit(strategy="sampling", seed=5, max_new_tokens=120)
    live = stack.events(job["links"]["events"])
    final = stack.wait(job["id"])
    assert live[0][1] == "status"
    assert live[-1][1] == "done"
    assert live[-1][2]["text"] == final["text"]

    def text_of(events: list[tuple[str, str, object]]) -> str:
        return "".join(d["text"] for _, name, d in events if name == "token")  # type: ignore[index]

    assert text_of(live) == final["text"]
    for cut in range(1, len(live), 7):
        rest = stack.events(job["links"]["events"], last_id=live[cut - 1][0])
        assert text_of(live[:cut]) + text_of(rest) == final["text"]
    answer = stack.request("GET", job["links"]["events"], headers={"Last-Event-ID": live[-1][0]})
    assert answer.status == 204


def test_cancel_keeps_the_text_and_a_second_one_conflicts(stack: Stack) -> None:
    job = stack.submit(max_new_tokens=1900)  # greedy never draws the end with this model
    running = job
    while not running["text"]:
        running = stack.request("GET", job["links"]["self"]).json
    answer = stack.request("POST", job["links"]["cancel"])
    assert answer.status == 202
    done = stack.wait(job["id"])
    assert done["status"] == "canceled"
    assert done["finish_reason"] == "canceled"
    assert done["text"].startswith(running["text"])
    assert stack.request("POST", job["links"]["cancel"]).status == 409


def test_a_deleted_job_is_gone(stack: Stack) -> None:
    job = stack.submit(max_new_tokens=1500, strategy="sampling")
    assert stack.request("DELETE", job["links"]["self"]).status == 204
    assert stack.request("GET", job["links"]["self"]).status == 404
    assert stack.request("DELETE", job["links"]["self"]).status == 404


def test_the_same_key_gives_the_same_job(stack: Stack) -> None:
    body = {"prompt": "once", "max_new_tokens": 3}
    key = {"Idempotency-Key": "key-1"}
    first = stack.request("POST", "/api/v1/jobs", body, key)
    second = stack.request("POST", "/api/v1/jobs", body, key)
    other = stack.request("POST", "/api/v1/jobs", {**body, "max_new_tokens": 4}, key)
    assert first.status == second.status == 202
    assert first.json["id"] == second.json["id"]
    assert other.status == 422


def test_an_unchanged_job_is_not_sent_twice(stack: Stack) -> None:
    job = stack.generate(max_new_tokens=3)
    first = stack.request("GET", job["links"]["self"])
    again = stack.request(
        "GET", job["links"]["self"], headers={"If-None-Match": first.headers["ETag"]}
    )
    assert again.status == 304
    assert again.body == b""


def test_a_run_compares_variants_as_one_object(stack: Stack) -> None:
    answer = stack.request(
        "POST",
        "/api/v1/runs",
        {
            "prompt": "Compare",
            "max_new_tokens": 12,
            "samples": 2,
            "variants": [
                {"strategy": "greedy"},
                {"strategy": "sampling", "temperature": 0.7},
                {"strategy": "top_k", "top_k": 10, "model": "tiny-neo"},
            ],
        },
    )
    assert answer.status == 202
    run = answer.json
    assert [job["variant_index"] for job in run["jobs"]] == [0, 1, 1, 2, 2]
    events = stack.events(run["links"]["events"])
    assert events[-1][1] == "end"
    final = stack.request("GET", run["links"]["self"]).json
    for job in final["jobs"]:
        assert job["status"] == "succeeded"
        told = [d for _, name, d in events if name == "token" and d["job_id"] == job["id"]]
        assert "".join(d["text"] for d in told) == job["text"]
    listed = stack.request("GET", f"/api/v1/jobs?run_id={run['id']}").json["items"]
    assert {job["id"] for job in listed} == {job["id"] for job in run["jobs"]}


def test_a_run_with_one_bad_variant_stores_nothing(stack: Stack) -> None:
    before = stack.request("GET", "/api/v1/jobs?limit=1").json["items"][:1]
    answer = stack.request(
        "POST",
        "/api/v1/runs",
        {"prompt": "x", "variants": [{"strategy": "greedy"}, {"strategy": "top_k", "top_k": 0}]},
    )
    assert answer.status == 422
    assert [error["field"] for error in answer.json["errors"]] == ["variants.1.top_k"]
    assert stack.request("GET", "/api/v1/jobs?limit=1").json["items"][:1] == before


def test_a_trace_tells_why_each_token_was_chosen(stack: Stack) -> None:
    job = stack.generate(strategy="top_k", top_k=5, trace=True, max_new_tokens=8)
    trace = stack.request("GET", job["links"]["trace"]).json["tokens"]
    assert len(trace) == job["usage"]["completion_tokens"]
    for token in trace:
        assert token["rank"] <= 5
        assert len(token["alternatives"]) == 20
        assert 0 < token["probability"] <= 1
        kept = sum(other["probability"] for other in token["alternatives"])
        assert kept == pytest.approx(1, abs=1e-5)
    untraced = stack.generate(max_new_tokens=2)
    assert stack.request("GET", untraced["links"]["trace"]).status == 404


def test_pages_of_the_history_join_without_overlap(stack: Stack) -> None:
    wanted = [stack.submit(prompt="pages pages", max_new_tokens=1)["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = stack.request("GET", f"/api/v1/jobs?q=pages&limit=2&cursor={cursor}").json
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
    assert seen == wanted[::-1]


def test_the_export_holds_what_the_filters_pick(stack: Stack) -> None:
    job = stack.generate(prompt="exported unicorn", max_new_tokens=2)
    lines = stack.request("GET", "/api/v1/jobs/export?q=unicorn").body.decode().splitlines()
    assert [job["id"] in line for line in lines] == [True]
    table = stack.request("GET", "/api/v1/jobs/export?q=unicorn&format=csv").body.decode(
        "utf-8-sig"
    )
    assert job["id"] in table


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/api/v1/jobs", b"{nope", {}, 400),
        ("POST", "/api/v1/jobs", b'{"prompt": NaN}', {}, 400),
        ("POST", "/api/v1/jobs", b"[" * 100_000, {}, 400),
        ("POST", "/api/v1/jobs", b'{"prompt":"a"}', {"Content-Type": "text/plain"}, 415),
        ("POST", "/api/v1/jobs", b'{"prompt":"' + b"a" * 300_000 + b'"}', {}, 413),
        ("POST", "/api/v1/jobs", {"prompt": "   "}, {}, 422),
        ("POST", "/api/v1/jobs", {"prompt": "a", "strategy": "beam", "num_beams": 9}, {}, 422),
        ("POST", "/api/v1/jobs", {"prompt": "word " * 3000}, {}, 422),
        ("PUT", "/api/v1/jobs", {}, {}, 405),
        ("GET", "/api/v1/nothing", None, {}, 404),
        ("GET", "/api/v1/jobs/nobody", None, {}, 404),
        ("GET", "/api/v1/jobs?cursor=%00", None, {}, 422),
        ("GET", "/api/v1/jobs?limit=abc", None, {}, 422),
        ("GET", "/api/v1/jobs/%ff%00", None, {}, 404),
        ("GET", "/api/v1/runs/nobody", None, {}, 404),
    ],
)
def test_bad_input_gets_a_problem_document(
    stack: Stack, method: str, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    answer = stack.request(method, path, body, headers)
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["title"]
    assert answer.json["detail"]


def test_a_prompt_too_long_names_both_numbers(stack: Stack) -> None:
    answer = stack.request("POST", "/api/v1/jobs", {"prompt": "word " * 3000})
    message = answer.json["errors"][0]["message"]
    assert "2048" in message
    count = stack.request("POST", "/api/v1/tokenize", {"text": "word " * 3000}).json["count"]
    assert str(count) in message


def test_the_product_tells_how_it_is(stack: Stack) -> None:
    assert stack.request("GET", "/healthz").status == 200
    assert stack.request("GET", "/readyz").json["redis"] == "ok"
    queue = stack.request("GET", "/api/v1/queue").json
    assert queue["workers"][0]["slots"] > 0
    assert b"textmill_queue_depth" in stack.request("GET", "/metrics").body
    strategies = stack.request("GET", "/api/v1/strategies").json
    assert [s["name"] for s in strategies][:3] == ["greedy", "sampling", "top_k"]
    assert stack.request("GET", "/api/v1/openapi.json").json["openapi"].startswith("3.1")


def test_events_are_parsed_as_the_standard_has_them() -> None:
    text = ': hi\nretry: 5\n\nid: 1-2\nevent: token\ndata: {"text": "a"}\n\n'
    assert parse_events(text) == [("1-2", "token", {"text": "a"})]
