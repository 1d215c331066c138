"""``/v1/completions`` as its clients use it, on both databases."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.integration.backend.conftest import JOBS, Site

URL = "/v1/completions"


def test_it(site: Site) -> None:
    site.beat(models=["tiny", "other"])
    answer = site.client.post(URL, json={"prompt": "a quick", "model": "nope"})
    print(answer.status_code, answer.text)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(
            site.client.post, URL, json={"prompt": "a quick", "max_tokens": 4, "temperature": 0}
        )
        while not site.client.get(JOBS).get_json()["items"]:
            pass
        site.finish(site.claim())
        answer = later.result(10)
    print(answer.status_code, answer.text)
    print(site.client.get("/v1/models").text)
    print(site.client.get("/tokenizer_info").text)
    print(site.client.post("/tokenize", json={"prompt": "a quick"}).text)
    assert 0
