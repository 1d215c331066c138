"""A hostile visitor: generated requests against the OpenAPI document, and raw bytes against all."""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.acceptance.stack import Stack
from textmill.backend.openapi import openapi_document

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def _operations() -> Iterator[APIOperation[Any, Any, Any, Any]]:
    for found in schemathesis.openapi.from_dict(openapi_document()).get_all_operations():
        assert isinstance(found, Ok), "the document is valid"
        operation = found.ok()
        # A stream has no end to wait for; its resuming is tested in test_contract.
        if not operation.path.endswith("/events"):
            yield operation


OPERATIONS = list(_operations())


# A call that takes no body and no query cannot be made wrongly by its schema.
CALLS = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS] + [
    (operation, GenerationMode.NEGATIVE)
    for operation in OPERATIONS
    if operation.definition.raw.get("requestBody")
    or any(p["in"] == "query" for p in operation.definition.raw["parameters"])
]


@pytest.mark.parametrize(
    ("operation", "mode"), CALLS, ids=[f"{op.label} {mode.value}" for op, mode in CALLS]
)
def test_no_generated_request_breaks_the_document(
    stack: Stack, operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode
) -> None:
    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Case[Any]) -> None:
        if "wait" in case.query:
            case.query["wait"] = 0  # waiting is tested elsewhere
        response = case.call(base_url=f"{stack.url}/api/v1", timeout=30)
        case.validate_response(response, checks=CHECKS)

    run()


BODIES = [
    b"",
    b"\xff\xfe\x00",
    b"null",
    b'"text"',
    b"[1,2,3]",
    b'{"prompt":"\\ud800"}',
    b'{"prompt":"\\u0000"}',
    b'{"prompt":"a","seed":' + b"9" * 5000 + b"}",
    b'{"prompt":"a","strategy":"sampling","temperature":1e999}',
    b'{"prompt":"a","strategy":{"a":1}}',
    b'{"prompt":"a","stop":[null]}',
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b'{"prompt":"a","prompt":""}',
    b'{"' + b"k" * 100_000 + b'":1}',
    b'{"prompt":"a","\\u0000\\ud800":1}',
]
PATHS = [
    "/api/v1/jobs/%00",
    "/api/v1/jobs/%ff",
    "/api/v1/jobs/" + "a" * 3000,
    "/api/v1/jobs/..%2f..%2fetc",
    "/api/v1/jobs?q=%00",
    "/api/v1/jobs?q=%ff%fe",
    "/api/v1/jobs?q=%22%27%28%29*%3A-",
    "/api/v1/jobs?q=" + "a" * 4000,
    "/api/v1/jobs?limit=99999999999999999999",
    "/api/v1/jobs?limit=%D9%A3",
    "/api/v1/jobs?cursor=" + "9" * 500,
    "/api/v1/jobs?since=0000-00-00",
    "/api/v1/jobs?since=9999-12-31T23:59:59%2B23:59",
    "/api/v1/jobs?since=0001-01-01T00:00:00%2B23:59",
    "/api/v1/jobs?status=queued&status=running",
    "/api/v1/jobs?colour=red",
    "/api/v1/jobs?model=%00",
    "/api/v1/jobs/nobody?wait=nan",
    "/api/v1/jobs/nobody?wait=-1",
    "/api/v1/jobs/nobody/events?after=x",
    "/api/v1/jobs/export?format=exe",
    "/history?q=%00&limit=x",
    "/history?cursor=%ff",
    "/jobs/%00",
    "/runs/%ff",
    "/static/../backend/app.py",
    "/static/%2e%2e/%2e%2e/pyproject.toml",
    "/?from=%00&prompt=%ff",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/runs", "/api/v1/tokenize"])
def test_no_body_gets_a_500_or_is_stored(stack: Stack, path: str, body: bytes) -> None:
    before = stack.request("GET", "/api/v1/jobs?limit=1").json["items"][:1]
    assert 400 <= stack.request("POST", path, body).status < 500
    after = stack.request("GET", "/api/v1/jobs?limit=1").json["items"][:1]
    assert [job["id"] for job in after] == [job["id"] for job in before]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
def test_no_address_gets_a_500(stack: Stack, method: str, path: str) -> None:
    assert stack.request(method, path).status < 500


def test_random_bytes_on_the_wire_do_no_harm(stack: Stack) -> None:
    source = random.Random(7)
    for _ in range(150):
        connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=20)
        method = source.choice(["POST", "PUT", "PATCH", "DELETE", "GET"])
        path = source.choice(["/api/v1/jobs", "/api/v1/runs", "/generate", "/api/v1/tokenize"])
        body = source.randbytes(source.randrange(200))
        kind = source.choice(["application/json", "text/plain", "multipart/form-data", "\u00e9"])
        headers = {"Content-Type": kind, "Accept": source.choice(["*/*", "text/html", "q=;;,"])}
        connection.request(method, path, body, headers)
        assert connection.getresponse().status < 500
        connection.close()


def test_the_queue_still_works_after_all_that(stack: Stack) -> None:
    assert stack.generate(max_new_tokens=3)["status"] == "succeeded"
    assert stack.request("GET", "/readyz").status == 200
