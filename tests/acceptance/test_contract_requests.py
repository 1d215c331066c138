"""The contract's tables over HTTP: every parameter's range, every filter, every refusal."""

from __future__ import annotations

import csv
import http.client
import io
import json
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.acceptance.stack import Stack, parse_events
from textmill.core.jobs.search import parts
from textmill.core.strategies import STRATEGIES
from textmill.core.strategy_specs import ParameterSpec

RANGES = [(spec.name, p) for spec in STRATEGIES for p in spec.parameters]


def refused(stack: Stack, body: Any, path: str = "/api/v1/jobs") -> list[str]:
    """The fields that a 422 names."""
    answer = stack.request("POST", path, body)
    assert answer.status == 422, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    return sorted(error["field"] for error in answer.json["errors"])


# ---- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "parameter"), RANGES, ids=lambda v: getattr(v, "name", v))
def test_a_parameter_is_taken_at_its_bounds_and_refused_beyond(
    stack: Stack, strategy: str, parameter: ParameterSpec
) -> None:
    def body(value: object) -> dict[str, object]:
        named = {parameter.name: value}
        return {"prompt": "a", "strategy": strategy, "max_new_tokens": 2} | named

    limits = next(m for m in stack.request("GET", "/api/v1/models").json if m["default"])
    high = parameter.maximum if parameter.maximum is not None else limits["vocabulary_size"]
    low = parameter.minimum + (0.01 if parameter.exclusive_minimum else 0)
    for value in (low, high, parameter.default):
        job = stack.generate(**body(value))
        assert job["status"] == "succeeded", job
        assert job["parameters"][parameter.name] == value
    for value in (parameter.minimum - 0.5, high + 1, "1", True, [1], 1e300):
        assert refused(stack, body(value)) == [parameter.name], value
    if parameter.exclusive_minimum:
        assert refused(stack, body(parameter.minimum)) == [parameter.name]


def test_every_bad_field_is_named_in_one_answer(stack: Stack) -> None:
    body = {
        "prompt": "",
        "model": "nobody",
        "strategy": "top_k",
        "top_k": 0,
        "temperature": 9,
        "min_p": 0.5,
        "seed": -1,
        "stop": ["a" * 65],
        "trace": "yes",
        "colour": "red",
        "max_new_tokens": 0,
    }
    expected = sorted([*body.keys() - {"strategy", "stop"}, "stop.0"])
    assert refused(stack, body) == expected


def test_a_length_reaches_to_the_models_context(stack: Stack) -> None:
    models = stack.request("GET", "/api/v1/models").json
    context = next(m["context_length"] for m in models if m["default"])
    assert refused(stack, {"prompt": "a", "max_new_tokens": context + 1}) == ["max_new_tokens"]
    job = stack.submit(max_new_tokens=context)
    assert stack.request("DELETE", job["links"]["self"]).status == 204


def test_a_text_that_fills_the_context_ends_there(stack: Stack) -> None:
    job = stack.generate(
        model="tiny-neo", strategy="sampling", temperature=2, seed=1, max_new_tokens=512
    )
    assert job["status"] == "succeeded"
    if job["finish_reason"] == "length":
        assert sum(job["usage"].values()) == 512


def test_any_text_can_be_continued_and_comes_back_as_it_was(stack: Stack) -> None:
    prompt = "Größe 你好 مرحبا 😀👩‍👩‍👧 e\u0301 \u2028\r\n\t\x01 <b>&amp;</b> '\"\\"
    job = stack.generate(prompt=prompt, max_new_tokens=4)
    assert (job["prompt"], job["status"]) == (prompt, "succeeded")


def test_a_job_tells_the_whole_story_of_its_states(stack: Stack) -> None:
    queued = stack.submit(max_new_tokens=5, seed=3, stop=["zzz"])
    assert (queued["status"], queued["text"], queued["finish_reason"]) == ("queued", "", None)
    assert queued["queue"]["position"] >= 1
    assert queued["started_at"] is queued["finished_at"] is queued["error"] is None
    assert set(queued["timings"].values()) == {None}
    assert queued["attempt"] == 0
    assert queued["parameters"] == {
        "repetition_penalty": 1.0,
        "max_new_tokens": 5,
        "seed": 3,
        "stop": ["zzz"],
    }
    done = stack.wait(queued["id"])
    assert (done["status"], done["attempt"], done["queue"]) == ("succeeded", 1, None)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert done["usage"]["completion_tokens"] <= 5
    assert done["model_revision"]
    assert all(value is not None for value in done["timings"].values())
    for link in ("self", "events"):
        assert stack.request("GET", done["links"][link]).status == 200


# ---- waiting, caching, streams ----------------------------------------------------------------


def test_a_wait_ends_with_the_job_or_with_the_time(stack: Stack) -> None:
    job = stack.submit(max_new_tokens=1500, strategy="sampling", seed=2)
    began = time.monotonic()
    early = stack.request("GET", job["links"]["self"] + "?wait=0.2").json
    assert time.monotonic() - began < 10
    if early["finished_at"] is None:
        assert early["status"] in {"queued", "running"}
    stack.request("POST", job["links"]["cancel"])
    assert stack.wait(job["id"])["finished_at"] is not None
    for bad in ("-1", "31", "x", "nan", "inf"):
        assert stack.request("GET", f"{job['links']['self']}?wait={bad}").status == 422


def test_a_job_that_changed_has_another_etag(stack: Stack) -> None:
    job = stack.submit(max_new_tokens=3)
    first = stack.request("GET", job["links"]["self"]).headers["ETag"]
    done = stack.wait(job["id"])
    answer = stack.request("GET", done["links"]["self"], headers={"If-None-Match": first})
    if answer.status == 304:  # it had ended when it was first asked for
        assert stack.request("GET", done["links"]["self"]).headers["ETag"] == first
    else:
        assert answer.json["status"] == "succeeded"


class OpenStream:
    """An event stream that a test may cut wherever it likes."""

    def __init__(self, stack: Stack, path: str, last_id: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
        headers = {"Last-Event-ID": last_id} if last_id is not None else {}
        self._connection.request("GET", path, headers=headers)
        self._answer = self._connection.getresponse()
        self.status = self._answer.status

    def take(self, num: int) -> list[tuple[str, str, Any]]:
        """The next events; fewer when the stream ends."""
        found: list[tuple[str, str, Any]] = []
        block = b""
        while len(found) < num and (line := self._answer.readline()):
            block += line
            if line == b"\n":
                found += parse_events(block.decode())
                block = b""
        return found

    def cut(self) -> None:
        self._connection.close()


def test_a_live_stream_cut_after_every_event_gives_the_exact_text(stack: Stack) -> None:
    """Not a finished job's: each connection is cut while the text is still being written."""
    job = stack.submit(strategy="sampling", seed=21, max_new_tokens=800)
    told, last_id, num_cuts = "", None, 0
    while True:
        stream = OpenStream(stack, job["links"]["events"], last_id)
        events = stream.take(1 + num_cuts % 3)
        stream.cut()
        if stream.status == 204:
            break
        for event_id, name, data in events:
            last_id = event_id
            if name == "token":
                told += data["text"]
            assert name != "reset"
        if any(name == "done" for _, name, _ in events):
            break
        num_cuts += 1
    final = stack.wait(job["id"])
    assert told == final["text"]
    assert num_cuts > 2


def test_several_watchers_of_one_job_see_the_same(stack: Stack) -> None:
    job = stack.submit(strategy="sampling", seed=22, max_new_tokens=300)
    seen: list[str] = []

    def watch() -> None:
        events = stack.events(job["links"]["events"])
        seen.append("".join(d["text"] for _, name, d in events if name == "token"))

    threads = [threading.Thread(target=watch) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [stack.wait(job["id"])["text"]] * 5


def test_a_stream_of_a_deleted_job_says_so_and_ends(stack: Stack) -> None:
    job = stack.submit(strategy="sampling", max_new_tokens=1500)
    stream = OpenStream(stack, job["links"]["events"])
    assert stream.take(1)[0][1] == "status"
    assert stack.request("DELETE", job["links"]["self"]).status == 204
    names = [name for _, name, _ in stream.take(10_000)]
    stream.cut()
    assert names[-1] in {"deleted", "done"}
    assert stack.request("GET", job["links"]["events"]).status == 404


@pytest.mark.parametrize("after", ["x", "1", "1-2-3", "1-2,3-4", "-1-0", "1-%00", "9" * 40 + "-1"])
def test_a_place_that_is_none_is_refused(stack: Stack, after: str) -> None:
    job = stack.generate(max_new_tokens=1)
    answer = stack.request("GET", f"{job['links']['events']}?after={after}")
    assert answer.status == 422
    assert answer.json["errors"][0]["field"] == "after"


# ---- history ----------------------------------------------------------------------------------


def test_every_filter_picks_what_it_says(stack: Stack) -> None:
    run = stack.request(
        "POST",
        "/api/v1/runs",
        {
            "prompt": "filtered pangolin",
            "max_new_tokens": 2,
            "variants": [
                {"strategy": "sampling", "seed": 1},
                {"strategy": "top_k", "model": "tiny-neo", "seed": 1},
            ],
        },
    ).json
    jobs = [stack.wait(job["id"]) for job in run["jobs"]]

    def found(query: str) -> list[str]:
        answer = stack.request("GET", f"/api/v1/jobs?q=pangolin&{query}")
        assert answer.status == 200, answer.body
        return [item["id"] for item in answer.json["items"]]

    sampled, cut = (job["id"] for job in jobs)
    assert found("") == [cut, sampled]
    assert found("strategy=top_k") == [cut]
    assert found("model=tiny-llama") == [sampled]
    assert found(f"run_id={run['id']}") == [cut, sampled]
    assert found("run_id=nobody") == []
    assert found("status=succeeded") == [cut, sampled]
    assert found("status=failed") == []
    assert found(f"since={jobs[0]['created_at']}") == [cut, sampled]
    assert found("since=2999-01-01") == []
    assert found("until=2000-01-01") == []
    assert found("limit=1") == [cut]
    assert stack.request("GET", "/api/v1/jobs?q=PANGOLIN%20Filtered").json["items"]
    assert stack.request("GET", "/api/v1/jobs?q=pangolin%20unheardof").json["items"] == []


def test_a_written_text_is_found_by_each_of_its_words(stack: Stack) -> None:
    job = stack.generate(strategy="sampling", temperature=1.5, seed=5, max_new_tokens=60)
    found = [*parts(job["text"]).words, *parts(job["text"]).runs][:20]
    assert found
    for word in found:
        listed = stack.request("GET", f"/api/v1/jobs?limit=200&q={quote(word)}").json["items"]
        assert job["id"] in [item["id"] for item in listed], word


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "status=done", "strategy=best", "cursor=!", "since=soon"],
)
def test_a_filter_that_means_nothing_is_refused_by_name(stack: Stack, query: str) -> None:
    answer = stack.request("GET", f"/api/v1/jobs?{query}")
    assert answer.status == 422
    assert [error["field"] for error in answer.json["errors"]] == [query.split("=")[0]]


def test_both_exports_hold_every_job_once_and_every_character(stack: Stack) -> None:
    prompts = [f'exported okapi {n}: "quoted", =1+1\nand 😀' for n in range(4)]
    ids = [stack.generate(prompt=prompt, max_new_tokens=2)["id"] for prompt in prompts]
    lines = stack.request("GET", "/api/v1/jobs/export?q=okapi&format=jsonl").body.decode()
    jobs = [json.loads(line) for line in lines.split("\n") if line]
    assert [job["id"] for job in jobs] == ids[::-1]
    assert [job["prompt"] for job in jobs] == prompts[::-1]
    table = stack.request("GET", "/api/v1/jobs/export?q=okapi&format=csv").body.decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert [row["id"] for row in rows] == ids[::-1]
    assert [row["prompt"] for row in rows] == prompts[::-1]


# ---- models, tokens, figures ------------------------------------------------------------------


def test_the_models_are_described(stack: Stack) -> None:
    models = {model["name"]: model for model in stack.request("GET", "/api/v1/models").json}
    assert list(models) == ["tiny-llama", "tiny-neo"]
    llama = models["tiny-llama"]
    assert (llama["default"], models["tiny-neo"]["default"]) == (True, False)
    assert llama["description"] == "A tiny random Llama"
    assert (llama["context_length"], llama["loaded_by"]) == (2048, 1)
    assert llama["parameters"] > 0
    assert (llama["family"], models["tiny-neo"]["family"]) == ("llama", "gpt_neo")


def test_a_text_is_cut_into_tokens_that_join_to_it(stack: Stack) -> None:
    text = "The quick brown fox, naïve? 😀 你好"
    answer = stack.request("POST", "/api/v1/tokenize", {"text": text, "model": "tiny-neo"}).json
    assert answer["count"] == len(answer["tokens"]) > 0
    assert all(isinstance(token["id"], int) for token in answer["tokens"])
    assert "".join(token["text"] for token in answer["tokens"]) == text
    empty = stack.request("POST", "/api/v1/tokenize", {"text": ""}).json
    assert empty == {"tokens": [], "count": 0}
    job = stack.submit(prompt=text, model="tiny-neo", max_new_tokens=1)
    assert job["usage"]["prompt_tokens"] == answer["count"]
    assert refused(stack, {"text": "a", "model": "nobody"}, "/api/v1/tokenize") == ["model"]
    assert refused(stack, {"text": 1}, "/api/v1/tokenize") == ["text"]


def test_a_run_with_a_key_is_made_once(stack: Stack) -> None:
    body = {"prompt": "once", "max_new_tokens": 1, "variants": [{"strategy": "sampling"}]}
    key = {"Idempotency-Key": "run-key-1"}
    first = stack.request("POST", "/api/v1/runs", body, key)
    assert first.status == 202
    assert first.headers["Location"] == first.json["links"]["self"]
    assert stack.request("POST", "/api/v1/runs", body, key).json["id"] == first.json["id"]
    assert stack.request("POST", "/api/v1/runs", {**body, "samples": 2}, key).status == 422
    # The same key for a job is another key.
    assert stack.request("POST", "/api/v1/jobs", {"prompt": "a"}, key).status == 202


@pytest.mark.parametrize("key", ["", " ", "a" * 256])
def test_a_key_that_is_none_is_refused(stack: Stack, key: str) -> None:
    answer = stack.request("POST", "/api/v1/jobs", {"prompt": "a"}, {"Idempotency-Key": key})
    assert answer.status == 422
    assert answer.json["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/jobs", "POST"),
        ("POST", "/api/v1/jobs/x", "GET"),
        ("GET", "/api/v1/jobs/x/cancel", "POST"),
        ("DELETE", "/api/v1/runs/x", "GET"),
        ("POST", "/api/v1/queue", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(
    stack: Stack, method: str, path: str, allowed: str
) -> None:
    answer = stack.request(method, path)
    assert answer.status == 405
    assert allowed in answer.headers["Allow"]
    assert answer.json["status"] == 405


# ---- a full queue -----------------------------------------------------------------------------


@pytest.fixture
def waiting_stack(sqlite_url: str, redis_url: str, make_stack: Callable[..., Stack]) -> Stack:
    """A web process whose queue holds three jobs, two of one owner, and no worker at all."""
    stack = make_stack(sqlite_url, None, TEXTMILL_MAX_QUEUED="3", TEXTMILL_MAX_QUEUED_PER_OWNER="2")
    stack.start_web()
    stack.wait_alive()
    return stack


def test_a_full_queue_says_when_to_come_back_and_stores_nothing(waiting_stack: Stack) -> None:
    stack = waiting_stack

    def post(owner: str) -> Any:
        cookie = {"Cookie": f"textmill_owner={owner * 32}"}
        return stack.request("POST", "/api/v1/jobs", {"prompt": "a"}, cookie)

    assert [post("a").status for _ in range(2)] == [202, 202]
    limited = post("a")
    assert (limited.status, limited.json["status"]) == (429, 429)
    assert int(limited.headers["Retry-After"]) > 0
    assert post("b").status == 202
    full = post("c")
    assert (full.status, full.json["status"]) == (503, 503)
    assert int(full.headers["Retry-After"]) > 0
    run = {"prompt": "a", "variants": [{"strategy": "sampling"}] * 2}
    assert stack.request("POST", "/api/v1/runs", run).status == 503
    items = stack.request("GET", "/api/v1/jobs").json["items"]
    assert len(items) == 3
    assert sorted(item["queue"]["position"] for item in items) == [1, 2, 3]
    # Without a worker the product is alive and not ready; what waits can be canceled and deleted.
    assert stack.request("GET", "/healthz").status == 200
    ready = stack.request("GET", "/readyz")
    assert (ready.status, ready.json["redis"]) == (503, "degraded")
    first, second, _ = items
    canceled = stack.request("POST", first["links"]["cancel"])
    assert (canceled.status, canceled.json["status"]) == (202, "canceled")
    assert stack.request("POST", first["links"]["cancel"]).status == 409
    assert stack.request("DELETE", second["links"]["self"]).status == 204
    assert stack.request("GET", "/api/v1/queue").json["depth"] == 1
    assert post("d").status == 202
    metrics = stack.request("GET", "/metrics").body.decode()
    assert "textmill_queue_depth" in metrics
