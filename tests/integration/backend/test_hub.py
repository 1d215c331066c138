"""The hub with a real Redis and both databases: one read for all, nothing lost or duplicated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.integration.backend.conftest import Site, Sites, parse_events
from tests.integration.backend.test_events_api import rebuild
from tests.servers import RedisServer
from textmill.backend.server.threads import Threads
from textmill.backend.streams import hub as hub_module
from textmill.backend.streams import subscribers as subscribers_module
from textmill.backend.streams.hub import Hub
from textmill.backend.streams.positions import StreamPosition
from textmill.backend.streams.sse import EventStream, JobWait, StreamSpec, WaitSpec
from textmill.backend.streams.subscribers import JobSnapshot, Subscriber
from textmill.core.events import StreamEntry, done, make_redis, started
from textmill.core.jobs.records import JobRecord

T = TypeVar("T")
PATIENCE_SECONDS = 20


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ROW_SECONDS", 0.05)
    monkeypatch.setattr(hub_module, "WITHOUT_REDIS_SECONDS", 0.05)
    monkeypatch.setattr(hub_module, "RETRY_SECONDS", 0.1)


def with_hub(site: Site, work: Callable[[Hub], Awaitable[T]]) -> T:
    async def run() -> T:
        threads = Threads("hub", 2)
        services = site.services
        hub = Hub(services.history, services.positions, services.event_reader(), threads)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await work(hub)
        finally:
            await hub.close()
            while threads.num_open:  # a look that was under way gives its connection back
                await asyncio.sleep(0.005)
            threads.close()

    return asyncio.run(run())


def spec_of(site: Site, job_id: str, place: StreamPosition | None = None) -> StreamSpec:
    read_at = time.monotonic()
    job = site.services.jobs.record(job_id)
    position = place or StreamPosition()
    return StreamSpec((job,), (position,), site.services.positions.read([job]), False, read_at)


async def events_of(watch: EventStream, is_enough: Callable[[list[Any]], bool]) -> list[Any]:
    said, texts = "", watch.chunks()
    async for text in texts:
        said += text
        if is_enough(parse_events(said)):
            break
    await close(texts)
    return parse_events(said)


async def close(texts: AsyncIterator[str]) -> None:
    await texts.aclose()  # type: ignore[attr-defined]


def never(_: list[Any]) -> bool:
    return False


def has_token(events: list[Any]) -> bool:
    return any(name == "token" for _, name, _ in events)


def token(job: JobRecord, end: int, text: str = "x") -> StreamEntry:
    return StreamEntry(job.id, job.attempt, end, text, end, "token")


def test_an_unchanged_job_is_delivered_once_whoever_subscribes(site: Site) -> None:
    job_id = site.submit()["id"]

    async def work(hub: Hub) -> list[Any]:
        order = spec_of(site, job_id)
        JobWait(
            hub, WaitSpec((site.services.jobs.record(job_id),), 30)
        )  # it has read the row later
        watch = EventStream(hub, order)
        telling = asyncio.create_task(events_of(watch, never))
        for _ in range(3):
            JobWait(hub, WaitSpec((site.services.jobs.record(job_id),), 30))
            EventStream(hub, spec_of(site, job_id))
            await asyncio.sleep(0.15)  # several looks at the row
        watch.close()
        return await telling

    assert [name for _, name, _ in with_hub(site, work)] == ["status"]


def test_many_subscribers_of_one_job_cost_one_read(site: Site) -> None:
    job_id = site.submit()["id"]
    asked: list[list[str]] = []
    briefs = site.services.history.briefs

    def noting(job_ids: Any) -> Any:
        asked.append(list(job_ids))
        return briefs(job_ids)

    site.services.history.briefs = noting  # type: ignore[method-assign]

    async def work(hub: Hub) -> list[list[Any]]:
        watches = [EventStream(hub, spec_of(site, job_id)) for _ in range(30)]
        telling = [asyncio.create_task(events_of(w, never)) for w in watches]
        held = site.claim()
        site.services.bus.publish([started(held.id, 1), token(held, 2, " b")])
        await asyncio.sleep(0.2)
        site.finish(held, " b c")
        site.services.bus.publish([done(held.id, 1, 4, 2)])
        return await asyncio.gather(*telling)

    for events in with_hub(site, work):
        assert rebuild(events) == " b c"
        assert [name for _, name, _ in events].count("done") == 1
    assert all(job_ids == [job_id] for job_ids in asked)


def test_a_late_subscriber_of_a_running_job_gets_the_text_that_the_row_lacks(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "ROW_SECONDS", 60.0)  # the stream alone can tell
    job_id = site.submit()["id"]
    held = site.claim()

    async def work(hub: Hub) -> tuple[list[Any], list[Any]]:
        first = asyncio.create_task(
            events_of(EventStream(hub, spec_of(site, job_id)), lambda e: rebuild(e) == "abc")
        )
        site.services.bus.publish([started(held.id, 1), token(held, 2, "ab"), token(held, 3, "c")])
        early = await first
        late = EventStream(hub, spec_of(site, job_id))
        return early, await events_of(late, lambda e: rebuild(e) == "abc")

    early, late = with_hub(site, work)
    assert rebuild(early) == rebuild(late) == "abc"


def test_a_job_without_announcements_is_read_from_its_rows(site: Site) -> None:
    job_id = site.submit()["id"]
    held = site.claim()

    async def work(hub: Hub) -> list[Any]:
        telling = asyncio.create_task(events_of(EventStream(hub, spec_of(site, job_id)), never))
        site.save(held, " b")
        await asyncio.sleep(0.2)
        site.finish(held, " b c")
        return await telling

    assert rebuild(with_hub(site, work)) == " b c"


def test_a_subscriber_that_does_not_read_stays_small_and_gets_the_whole_text_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers_module, "MAX_PENDING", 10)
    job_id = site.submit()["id"]
    held = site.claim()

    async def work(hub: Hub) -> list[Any]:
        watch = EventStream(hub, spec_of(site, job_id))
        entries = [token(held, end) for end in range(1, 101)]
        site.services.bus.publish([started(held.id, 1), *entries])
        await asyncio.sleep(0.2)
        assert len(watch._subscriber._pending) <= 11
        site.finish(held, "x" * 100)
        site.services.bus.publish([done(held.id, 1, 100, 100)])
        await asyncio.sleep(0.2)
        return await events_of(watch, never)

    events = with_hub(site, work)
    assert rebuild(events) == "x" * 100
    assert [name for _, name, _ in events].count("done") == 1


def test_after_a_restart_of_redis_the_streams_are_live_again(
    make_site: Sites, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(TEXTMILL_REDIS_URL=own_redis.url)
    job_id = site.submit()["id"]
    held = site.claim()

    async def work(hub: Hub) -> list[Any]:
        watch = EventStream(hub, spec_of(site, job_id))
        said: list[Any] = []

        def is_over(events: Any) -> bool:
            said.append(events)
            return rebuild(events) == "ab"

        telling = asyncio.create_task(events_of(watch, is_over))
        while not hub._is_redis_up or not said:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(own_redis.stop)
        while hub._is_redis_up:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(own_redis.start)
        while not hub._is_redis_up:
            await asyncio.sleep(0.01)
        with make_redis(own_redis.url) as client:
            assert client.ping()
        site.services.bus._breaker.note_success()
        site.services.bus.publish([started(held.id, 1), token(held, 2, "ab")])
        return await telling

    assert rebuild(with_hub(site, work)) == "ab"


def test_a_wait_ends_with_the_job_with_its_deletion_or_when_the_time_is_up(site: Site) -> None:
    one, two, three = (site.submit()["id"] for _ in range(3))

    async def timed(hub: Hub, job_id: str, seconds: float) -> float:
        began = time.monotonic()
        await JobWait(hub, WaitSpec((site.services.jobs.record(job_id),), seconds)).finished()
        return time.monotonic() - began

    async def work(hub: Hub) -> list[float]:
        waiting = [asyncio.create_task(timed(hub, job_id, 15)) for job_id in (one, two)]
        waiting.append(asyncio.create_task(timed(hub, three, 0.2)))
        await asyncio.sleep(0.1)
        held = site.claim()
        assert held.id == one
        site.finish(held)
        site.client.delete(f"/api/v1/jobs/{two}")
        return await asyncio.gather(*waiting)

    taken = with_hub(site, work)
    assert max(taken) < 10
    assert taken[2] >= 0.2


def test_a_closed_subscriber_is_forgotten_with_the_jobs_that_it_alone_followed(site: Site) -> None:
    one, two = site.submit()["id"], site.submit()["id"]

    async def work(hub: Hub) -> None:
        first, second = EventStream(hub, spec_of(site, one)), EventStream(hub, spec_of(site, one))
        wait = JobWait(hub, WaitSpec((site.services.jobs.record(two),), 30))
        assert hub.num_jobs == 2
        first.close()
        assert hub.num_jobs == 2
        second.close()
        wait.close()
        assert hub.num_jobs == 0

    with_hub(site, work)


def test_a_row_that_was_read_before_a_new_attempt_is_stale(site: Site) -> None:
    job_id = site.submit()["id"]

    async def work(hub: Hub) -> None:
        subscriber = Subscriber(hub.unsubscribe, wants_entries=True)
        job = site.services.jobs.record(job_id)
        hub.subscribe(subscriber, JobSnapshot(job, None, 1.0), (0, 0))
        channel = hub._followed[job_id]
        hub._deliver_entries([StreamEntry(job_id, 2, 0, "", 0, "started")])
        assert channel.is_stale(job, channel.entry_at - 1)
        assert not channel.is_stale(job, channel.entry_at + 1)  # the database has the last word
        assert channel.is_stale(job, 0.5)
        await asyncio.sleep(0)

    with_hub(site, work)
