"""Every error of the contract on both databases; none of them stores a row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.integration.backend.conftest import (
    CONTEXT_LENGTH,
    JOBS,
    RUNS,
    Site,
    Sites,
    bad_fields,
    problem,
)
from textmill.backend.bodies import MAX_BODY_BYTES
from textmill.core.errors import MAX_FIELD_ERRORS

TOKENIZE = "/api/v1/tokenize"

DEEP = b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


@pytest.fixture
def nothing_stored(site: Site) -> Iterator[None]:
    """Check that a test has stored no row."""
    before = site.count_rows()
    yield
    assert site.count_rows() == before


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("path", [JOBS, RUNS, TOKENIZE])
@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"prompt=a", b"{'prompt': 'a'}", b'{"prompt": "a"} x', b"\xff\xfe{}",
        b'{"prompt": "\xff"}', b'{"prompt": NaN}', b'{"temperature": Infinity}', b"-Infinity",
        b'{"seed": ' + b"9" * 5_000 + b"}", DEEP,
        b'{"prompt": "a", "prompt": "a"}', b'{"prompt": "a", "variants": [{"x": 1, "x": null}]}',
        b'{"prompt": [[{"\\u0061": 1, "a": 1}]]}', b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf{}",
        '{"prompt": "a"}'.encode("utf-16"), '{"prompt": "a"}'.encode("utf-32"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_400(site: Site, path: str, body: bytes) -> None:
    problem(site.client.post(path, data=body, content_type="application/json"), 400)


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("path", [JOBS, RUNS, TOKENIZE])
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "x"])
def test_a_body_without_a_json_content_type_is_415(site: Site, path: str, kind: str | None) -> None:
    problem(site.client.post(path, data=b'{"prompt": "a"}', content_type=kind), 415)


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("path", [JOBS, RUNS, TOKENIZE])
def test_a_body_over_the_limit_is_413(site: Site, path: str) -> None:
    body = json.dumps({"prompt": "w" * MAX_BODY_BYTES})
    problem(site.client.post(path, data=body, content_type="application/json"), 413)


@pytest.mark.parametrize(
    "path",
    ["/jobs/none", "/jobs/none/events", "/jobs/none/trace", "/runs/none", "/runs/none/events",
     "/nothing", "/jobs/" + "x" * 5_000, "/jobs/%00", "/jobs/%ff", "/jobs/%ed%a0%80",
     "/runs/%00", "/runs/%f0%28", "/jobs/a%0ab/events", "/jobs/%F0%9F%98%80?wait=1"],
)  # fmt: skip
def test_a_missing_resource_is_404(client: FlaskClient, path: str) -> None:
    problem(client.get("/api/v1" + path), 404)


@pytest.mark.parametrize("job_id", ["none", "%00", "%ff"])
def test_a_missing_job_cannot_be_changed(client: FlaskClient, job_id: str) -> None:
    problem(client.post(f"{JOBS}/{job_id}/cancel"), 404)
    problem(client.delete(f"{JOBS}/{job_id}"), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/jobs", "GET, HEAD, OPTIONS, POST"),
        ("PATCH", "/jobs/x", "DELETE, GET, HEAD, OPTIONS"),
        ("GET", "/jobs/x/cancel", "OPTIONS, POST"),
        ("DELETE", "/runs/x", "GET, HEAD, OPTIONS"),
        ("POST", "/models", "GET, HEAD, OPTIONS"),
        ("GET", "/tokenize", "OPTIONS, POST"),
    ],
)
def test_an_unsupported_method_is_405_and_lists_the_supported_ones(
    client: FlaskClient, method: str, path: str, allowed: str
) -> None:
    answer = client.open("/api/v1" + path, method=method)
    problem(answer, 405)
    assert answer.headers["Allow"] == allowed


def test_a_job_that_has_ended_cannot_be_canceled(site: Site) -> None:
    job = site.write("a", " b")
    problem(site.client.post(job["links"]["cancel"]), 409)
    assert site.client.get(job["links"]["self"]).get_json()["text"] == " b"


EVERYTHING_BAD: dict[str, Any] = {
    "prompt": "", "model": "none", "strategy": "top_k", "temperature": 3, "top_k": 0, "top_p": 1,
    "max_new_tokens": 0, "seed": -1, "stop": [""], "trace": "yes", "extra": 1,
}  # fmt: skip


@pytest.mark.usefixtures("nothing_stored")
def test_422_names_every_bad_field_at_once(site: Site) -> None:
    fields = bad_fields(site.client.post(JOBS, json=EVERYTHING_BAD))
    assert fields == (EVERYTHING_BAD.keys() - {"strategy", "stop"}) | {"stop.0"}


@pytest.mark.usefixtures("nothing_stored")
def test_422_names_every_bad_field_of_every_variant(site: Site) -> None:
    body = {
        "prompt": "a",
        "variants": [{"strategy": "top_k", "top_k": 0}, {"strategy": "none"}, 3, {"samples": 0}],
    }
    fields = bad_fields(site.client.post(RUNS, json=body))
    expected = {"variants.0.top_k", "variants.1.strategy", "variants.2", "variants.3.samples"}
    assert fields == expected


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    "field",
    [
        {"prompt": "a\0b"}, {"prompt": "\ud800"}, {"prompt": " \n"}, {"prompt": 1},
        {"prompt": None}, {"seed": 2**63}, {"seed": 10**400}, {"seed": 1e300}, {"seed": True},
        {"temperature": 10**400, "strategy": "sampling"}, {"max_new_tokens": CONTEXT_LENGTH + 1},
        {"stop": ["a"] * 9}, {"stop": ["a" * 65]}, {"stop": "a"}, {"stop": ["\ud800"]},
        {"model": "\0"}, {"model": "\ud800"}, {"": 1}, {"top_k": 5},
        {"strategy": "none"}, {"strategy": "\ud800"}, {"strategy": {}},
    ],
)  # fmt: skip
def test_an_invalid_value_is_422(site: Site, field: dict[str, Any]) -> None:
    (name,) = [name for name in field if name != "strategy" or len(field) == 1]
    found = bad_fields(site.client.post(JOBS, json={"prompt": "a", **field}))
    assert {item.split(".")[0] for item in found} == {
        name.encode("utf-8", "backslashreplace").decode()
    }
    assert bad_fields(site.client.post(RUNS, json={"prompt": "a", "variants": [{}], **field}))


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("path", [JOBS, RUNS, TOKENIZE])
@pytest.mark.parametrize(
    "fields", [{f"field_{n}": 1 for n in range(9_000)}, {"k" * 200_000: 1}, {"stop": [1] * 50_000}]
)
def test_a_422_is_shorter_than_its_request(
    site: Site, path: str, fields: dict[str, object]
) -> None:
    """Else a small request makes the server build and send a large answer."""
    body = json.dumps({"prompt": "a", **fields})
    answer = site.client.post(path, data=body, content_type="application/json")
    assert answer.status_code == 422
    assert len(answer.data) < len(body)
    assert len(answer.get_json()["errors"]) <= MAX_FIELD_ERRORS
    if len(fields) > MAX_FIELD_ERRORS:
        assert re.search(r", and [\d,]+ more\.$", answer.get_json()["detail"])


@pytest.mark.usefixtures("nothing_stored")
def test_a_field_name_that_is_not_valid_text_is_422(site: Site) -> None:
    assert bad_fields(site.client.post(JOBS, json={"prompt": "a", "\ud800": 1}))


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("body", [[], "a", 1, None, True, [{"prompt": "a"}]])
@pytest.mark.parametrize("path", [JOBS, RUNS, TOKENIZE])
def test_json_that_is_not_an_object_is_422(site: Site, path: str, body: object) -> None:
    answer = site.client.post(path, data=json.dumps(body), content_type="application/json")
    assert bad_fields(answer) == {""}


@pytest.mark.usefixtures("nothing_stored")
def test_a_prompt_too_long_for_the_model_is_422_and_says_both_numbers(site: Site) -> None:
    answer = site.client.post(JOBS, json={"prompt": "w " * 150})
    (error,) = problem(answer, 422)["errors"]
    assert error["field"] == "prompt"
    assert "150" in error["message"]
    assert str(CONTEXT_LENGTH) in error["message"]


def test_a_full_queue_is_503_and_one_owner_too_many_429(make_site: Sites) -> None:
    full = make_site(TEXTMILL_MAX_QUEUED="1")
    full.submit()
    problem(full.client.post(JOBS, json={"prompt": "a"}), 503)
    problem(full.client.post(RUNS, json={"prompt": "a", "variants": [{}]}), 503)
    owned = make_site(TEXTMILL_MAX_QUEUED_PER_OWNER="1")
    for answer in (
        owned.client.post(JOBS, json={"prompt": "a"}),
        owned.client.post(RUNS, json={"prompt": "a", "variants": [{}, {"seed": 2}]}),
    ):
        problem(answer, 429)
    assert full.count_rows() == (1, 0)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "limit=%D9%A1", "cursor=x", "cursor=%00", "cursor=%ff",
     "q=%00", "status=done", "strategy=none", "since=x", "until=20261123T99", "nothing=1",
     "limit=1&limit=2", "model=%00", "run_id=%00", "since=" + "9" * 60],
)  # fmt: skip
def test_an_invalid_filter_is_422_and_named(client: FlaskClient, query: str) -> None:
    name = query.partition("=")[0]
    assert bad_fields(client.get(f"{JOBS}?{query}")) == {name}
    assert name in bad_fields(client.get(f"{JOBS}/export?{query}"))


def test_all_bad_filters_are_named_at_once(client: FlaskClient) -> None:
    found = bad_fields(client.get(f"{JOBS}?limit=0&since=x&nothing=1&status=x&cursor=!"))
    assert found == {"limit", "since", "nothing", "status", "cursor"}


@pytest.mark.parametrize("query", ["format=xml", "format=", "limit=5", "cursor=MQ"])
def test_an_export_has_two_formats_and_no_pages(client: FlaskClient, query: str) -> None:
    assert bad_fields(client.get(f"{JOBS}/export?{query}")) == {query.partition("=")[0]}


@pytest.mark.parametrize(
    "wait",
    ["-1", "31", "nan", "inf", "x", "", "%00", "1e400", "1e1", "%2B5", "%205", "1_0", "0.5&wait=1",
     "%EF%BC%91", "1" * 3000],
)  # fmt: skip
def test_a_wait_out_of_range_is_422(site: Site, wait: str) -> None:
    job = site.submit()
    assert bad_fields(site.client.get(f"{job['links']['self']}?wait={wait}")) == {"wait"}


@pytest.mark.parametrize(
    "after",
    ["x", "1", "-1-2", "1-2-3", "%00", "%ff", "1-2,3-4", "1-1&after=1-1", "1" * 3000, "%D9%A1-1"],
)
def test_an_invalid_after_is_422(site: Site, after: str) -> None:
    job = site.submit()
    assert bad_fields(site.client.get(f"{job['links']['events']}?after={after}")) == {"after"}


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("key", ["", " ", "a" * 256, "é"])
def test_an_invalid_idempotency_key_is_422(site: Site, key: str) -> None:
    headers = {"Idempotency-Key": key}
    answer = site.client.post(JOBS, json={"prompt": "a"}, headers=headers)
    assert bad_fields(answer) == {"Idempotency-Key"}


@pytest.mark.parametrize(
    "query", ["q=%ff%fe", "q=%ed%a0%80", "model=%f0%28%8c%28", "q=" + "%F0%9F%98%80" * 500]
)
def test_invalid_utf_8_in_a_filter_finds_nothing(site: Site, query: str) -> None:
    site.submit()
    answer = site.client.get(f"{JOBS}?{query}")
    assert answer.status_code in {200, 422}
    if answer.status_code == 200:
        assert answer.get_json()["items"] == []


def test_an_invalid_tokenize_request_is_422(site: Site) -> None:
    assert bad_fields(site.client.post(TOKENIZE, json={"text": "a", "model": "none"})) == {"model"}
    assert bad_fields(site.client.post(TOKENIZE, json={"text": "a", "model": "other"})) == {"model"}
    assert bad_fields(site.client.post(TOKENIZE, json={"text": "\ud800", "x": 1})) == {"text", "x"}
