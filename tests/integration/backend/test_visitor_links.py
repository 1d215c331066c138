"""Addresses that name their visitor, for browsers that refuse cookies."""

from __future__ import annotations

import re

import pytest
from flask.testing import FlaskClient

from tests.integration.backend.conftest import JOBS, Site, Sites
from tests.integration.backend.test_access_matrix import FORM
from textmill.backend.access.visitors import HEADER


def demo(make_site: Sites) -> tuple[Site, FlaskClient]:
    site = make_site(TEXTMILL_ACCESS="demo", TEXTMILL_ALLOWED_HOSTS="demo.example.org")
    site.beat(models=["tiny", "other"])
    return site, site.app.test_client(use_cookies=False)


def root_of(client: FlaskClient) -> str:
    """The address of a new visitor, whose first form arrives without a cookie."""
    client.get("/")
    location = client.post("/generate", data=FORM).headers["Location"]
    found = re.fullmatch(r"(/visitor/[0-9a-f]{32}\.[\w-]+)/jobs/[0-9a-f-]{36}", location)
    assert found, location
    return found[1]


def test_a_browser_without_cookies_finds_its_texts_by_the_address(make_site: Sites) -> None:
    _, client = demo(make_site)
    root, other = root_of(client), root_of(client)
    assert root != other
    page = client.get(f"{root}/history")
    assert page.status_code == 200
    paths = re.findall(r'(?:href|action|src|data-root)="(/[^"]*)"', page.text)
    assert len(paths) > 10
    assert {path for path in paths if not path.startswith(root)} == set()
    links = set(re.findall(rf'href="({root}/jobs/[^"]*)"', page.text))
    (link,) = links
    job = client.get(link)
    assert job.status_code == 200
    assert f'data-events="{root}/api/v1/jobs/' in job.text
    again = client.post(f"{link}/again")
    assert again.headers["Location"].startswith(f"{root}/jobs/")
    assert len(client.get(f"{root}{JOBS}").get_json()["items"]) == 2
    assert client.get(link.replace(root, other)).status_code == 404
    assert client.get(link.replace(root, "")).status_code == 404


def test_a_link_for_everybody_does_not_contain_the_visitor(make_site: Sites) -> None:
    site, client = demo(make_site)
    root = root_of(client)
    job = client.get(f"{root}{JOBS}").get_json()["items"][0]["id"]
    client.post(f"{root}/jobs/{job}/share")
    page = client.get(f"{root}/jobs/{job}").text
    (shared,) = re.findall(r'href="([^"]*/shared/[^"]*)"', page)
    assert shared.startswith("/shared/")
    assert root not in client.get(shared).text
    assert site.client.get(shared).status_code == 200


def test_a_browser_that_keeps_cookies_gets_plain_addresses(make_site: Sites) -> None:
    site, _ = demo(make_site)
    browser = site.app.test_client()
    browser.get("/")
    assert browser.post("/generate", data=FORM).headers["Location"].startswith("/jobs/")
    assert "/visitor/" not in browser.get("/history").text


@pytest.mark.parametrize("change", ["", "x", "shorter", "id"])
def test_an_invented_token_in_the_address_is_nobodys(make_site: Sites, change: str) -> None:
    _, client = demo(make_site)
    root = root_of(client)
    bad = {
        "": "/visitor",
        "x": root + "x",
        "shorter": root[:-1],
        "id": "/visitor/" + "0" * 32 + root[root.index(".") :],
    }[change]
    for path in ("/history", JOBS, "/"):
        assert client.get(bad + path).status_code == 404


def test_a_header_wins_over_the_address_and_other_modes_have_no_such_addresses(
    make_site: Sites,
) -> None:
    _, client = demo(make_site)
    root = root_of(client)
    own = client.get(JOBS).headers[HEADER]
    assert client.get(f"{root}{JOBS}", headers={HEADER: own}).get_json()["items"] == []
    local = make_site()
    assert local.client.get(f"{root}/history").status_code == 404
