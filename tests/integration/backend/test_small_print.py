"""Bodies: equivalent requests under one key, byte-order marks, duplicate names, nulls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.backend.conftest import JOBS, RUNS, Site, bad_fields, problem

TOKENIZE = "/api/v1/tokenize"


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def send(site: Site, path: str, body: str | bytes, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return site.client.post(path, data=body, content_type="application/json", headers=headers)


SAME = [
    '{"prompt": "a", "strategy": "sampling", "temperature": 2, "seed": 7}',
    '{"prompt": "a", "strategy": "sampling", "temperature": 2.0, "seed": 7e0}',
    '{"seed": 7.0, "temperature": 20e-1, "strategy": "sampling", "prompt": "\\u0061"}',
    '{"prompt": "a", "strategy": "sampling", "temperature": 2, "seed": 7, "stop": null,'
    ' "max_new_tokens": null, "trace": null, "model": null, "top_p": null}',
]


def test_equivalent_bodies_are_one_request_under_a_key(site: Site) -> None:
    ids = [send(site, JOBS, body, "same").get_json()["id"] for body in SAME]
    assert len(set(ids)) == 1
    variants = '{"prompt": "a", "variants": [{"strategy": "sampling", "temperature": %s}]}'
    runs = [send(site, RUNS, variants % number, "run").get_json()["id"] for number in ("2", "2.0")]
    assert len(set(runs)) == 1


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a", "temperature": 1.5, "strategy": "sampling"}',
        '{"prompt": "a", "strategy": "greedy"}', '{"prompt": "a", "trace": false}',
        '{"prompt": "a", "max_new_tokens": 64}', '{"prompt": "A"}',
        '{"prompt": "a", "stop": ["1"]}',
    ],
)  # fmt: skip
def test_another_body_or_an_explicit_default_is_another_request(site: Site, body: str) -> None:
    assert send(site, JOBS, '{"prompt": "a"}', "other").status_code == 202
    assert bad_fields(send(site, JOBS, body, "other")) == {"Idempotency-Key"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (JOBS, {"prompt": "\ufeffa"}),
        (RUNS, {"prompt": "a", "variants": [{}]}),
        (TOKENIZE, {"text": "a"}),
    ],
)
def test_a_byte_order_mark_at_the_start_of_a_body_is_ignored(
    site: Site, path: str, body: dict[str, Any]
) -> None:
    answer = send(site, path, "\ufeff".encode() + json.dumps(body, ensure_ascii=False).encode())
    assert answer.status_code in {200, 202}
    if path == JOBS:
        assert answer.get_json()["prompt"] == "\ufeffa"


def test_a_duplicate_name_is_named(site: Site) -> None:
    body = '{"prompt": "a", "variants": [{"strategy": "top_k", "top_k": 1, "top_k": 50}]}'
    assert '"top_k" occurs twice' in problem(send(site, RUNS, body), 400)["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (JOBS, {"prompt": "a"}),
        (RUNS, {"prompt": "a", "variants": [{"strategy": "top_k"}]}),
        (TOKENIZE, {"text": "a"}),
    ],
)
def test_openapi_and_the_api_allow_null_in_every_optional_field(
    site: Site, path: str, body: dict[str, Any]
) -> None:
    schemas = site.client.get("/api/v1/openapi.json").get_json()["components"]["schemas"]
    name = {JOBS: "GreedyRequest", RUNS: "RunRequest", TOKENIZE: "TokenizeRequest"}[path]
    schema = schemas[name]
    optional = schema["properties"].keys() - set(schema.get("required", ())) - body.keys()
    assert optional
    for field in optional:
        assert {"type": "null"} in schema["properties"][field]["anyOf"]
    answer = send(site, path, json.dumps(body | dict.fromkeys(optional)))
    assert answer.status_code in {200, 202}, answer.text
    if path == RUNS:
        variant = schema["properties"]["variants"]["items"]["oneOf"][2]
        own = dict.fromkeys(variant["properties"].keys() - {"strategy"})
        body = body | {"variants": [{"strategy": "top_k"} | own]}
        assert send(site, path, json.dumps(body)).status_code == 202
