"""Server-sent events over a real Redis and both databases: order, ids, resumption."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.backend.conftest import JOBS, RUNS, Site, Sites, parse_events, problem
from tests.servers import RedisServer
from textmill.core.events import StreamEntry, done, started


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def follow(site: Site, path: str, last_id: str | None = None) -> list[tuple[str, str, Any]]:
    headers = {"Last-Event-ID": last_id} if last_id is not None else {}
    answer = site.app.test_client().get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.content_type.startswith("text/event-stream")
    return parse_events(answer.get_data(as_text=True))


def rebuild(events: list[tuple[str, str, Any]], text: str = "") -> str:
    for _, name, data in events:
        if name == "reset":
            text = ""
        elif name == "token":
            text += data["text"]
    return text


def test_an_ended_job_sends_status_token_and_done_and_then_204(site: Site) -> None:
    job = site.write("a", " b\u2028😀")
    path = job["links"]["events"]
    events = follow(site, path)
    assert [name for _, name, _ in events] == ["status", "token", "done"]
    assert rebuild(events) == " b\u2028😀"
    assert events[-1][2]["text"] == " b\u2028😀"
    last = events[-1][0]
    assert site.client.get(path, headers={"Last-Event-ID": last}).status_code == 204
    assert site.client.get(f"{path}?after={last}").status_code == 204


def test_a_stream_resumes_after_the_id_of_any_event(site: Site) -> None:
    path = site.write("a", " whole text")["links"]["events"]
    events = follow(site, path)
    for count, (event_id, _, _) in enumerate(events[:-1], 1):
        resumed = follow(site, path, event_id)
        assert rebuild(resumed, rebuild(events[:count])) == " whole text"
        assert [name for _, name, _ in resumed].count("done") == 1


def test_a_running_job_is_streamed_while_it_is_generated(site: Site) -> None:
    job = site.submit()
    answer = site.client.get(job["links"]["events"], buffered=False)
    lines = iter(answer.response)
    held = site.claim()
    site.services.bus.publish([started(held.id, 1), StreamEntry(held.id, 1, 2, " b", 1, "token")])
    said = ""
    while "event: token" not in said:
        said += str(next(lines), "utf-8")  # type: ignore[call-overload]
    site.finish(held, " b c")
    site.services.bus.publish([done(held.id, 1, 4, 2)])
    said += "".join(str(line, "utf-8") for line in lines)  # type: ignore[call-overload]
    answer.close()
    events = parse_events(said)
    assert rebuild(events) == " b c"
    assert [name for _, name, _ in events][-1] == "done"


def test_a_cursor_resumes_after_the_text_that_a_page_shows(site: Site) -> None:
    job = site.submit()
    held = site.claim()
    site.save(held, " b")
    shown = site.client.get(job["links"]["self"]).get_json()
    site.finish(held, " b c")
    events = follow(site, f"{job['links']['events']}?after={shown['cursor']}")
    assert rebuild(events, shown["text"]) == " b c"


def test_an_invalid_header_restarts_the_text_with_a_reset(site: Site) -> None:
    path = site.write("a", " b")["links"]["events"]
    for header in ("x", "1-2-3", "1:1-2,", "\xff"):
        events = follow(site, path, header)
        assert [name for _, name, _ in events] == ["reset", "status", "token", "done"]
        assert rebuild(events, "whatever it had") == " b"


def start_run(site: Site) -> dict[str, Any]:
    body = {"prompt": "a", "variants": [{"strategy": "sampling", "samples": 3}]}
    run: dict[str, Any] = site.client.post(RUNS, json=body).get_json()
    return run


def test_a_run_resumes_after_one_of_its_jobs_was_deleted(site: Site) -> None:
    run = start_run(site)
    helds = [site.claim() for _ in range(3)]
    for held in helds:
        site.save(held, f" {held.id}")
    cursor = site.client.get(run["links"]["self"]).get_json()["cursor"]
    shown = {held.id: f" {held.id}" for held in helds}
    site.client.delete(f"{JOBS}/{helds[0].id}")
    for held in helds[1:]:
        site.finish(held, f" {held.id} more")
    for headers, query in (({"Last-Event-ID": cursor}, ""), ({}, f"?after={cursor}")):
        answer = site.client.get(run["links"]["events"] + query, headers=headers)
        events = parse_events(answer.get_data(as_text=True))
        assert "reset" not in {name for _, name, _ in events}
        for held in helds[1:]:
            own = [event for event in events if event[2].get("job_id") == held.id]
            assert rebuild(own, shown[held.id]) == f" {held.id} more"
            assert [name for _, name, _ in own].count("done") == 1
        assert events[-1][1] == "end"
        last = {"Last-Event-ID": events[-1][0]}
        assert site.client.get(run["links"]["events"], headers=last).status_code == 204


def test_a_runs_stream_resumes_after_any_of_its_events(site: Site) -> None:
    run = start_run(site)
    for number in range(3):
        site.finish(site.claim(), f" text {number}")
    path = run["links"]["events"]
    events = follow(site, path)
    ids = [job["id"] for job in run["jobs"]]
    for count in range(1, len(events) - 2):
        told = events[:count] + follow(site, path, events[count - 1][0])
        for number, job_id in enumerate(ids):
            own = [event for event in told if event[2].get("job_id") == job_id]
            assert rebuild(own) == f" text {number}"
            assert [name for _, name, _ in own].count("done") == 1


def test_deleting_a_job_ends_its_stream(site: Site) -> None:
    job = site.submit()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(follow, site, job["links"]["events"])
        site.client.delete(job["links"]["self"])
        try:
            names = [name for _, name, _ in watching.result(20)]
        except AssertionError:  # deleted before the stream began
            problem(site.client.get(job["links"]["events"]), 404)
        else:
            assert names[-1] == "deleted"


def test_with_a_frozen_redis_the_text_comes_from_the_rows(
    make_site: Sites, own_redis: RedisServer
) -> None:
    site = make_site(TEXTMILL_REDIS_URL=own_redis.url)
    job = site.submit()
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    try:
        answer = site.client.get(job["links"]["events"], buffered=False)
        lines = iter(answer.response)
        said = str(next(lines), "utf-8")  # type: ignore[call-overload]
        held = site.claim()
        site.save(held, " b")
        while "event: token" not in said:
            said += str(next(lines), "utf-8")  # type: ignore[call-overload]
        site.finish(held, " b c")
        said += "".join(str(line, "utf-8") for line in lines)  # type: ignore[call-overload]
        answer.close()
    finally:
        os.kill(own_redis.process.pid, signal.SIGCONT)
    assert rebuild(parse_events(said)) == " b c"
