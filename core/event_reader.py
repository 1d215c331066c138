"""Reads the streams of jobs on an event loop: the asynchronous counterpart of ``core.events``.

A process needs two connections, however many clients follow jobs: one is subscribed to the ids of
jobs whose streams have grown, the other reads the entries of the jobs that are followed here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from textmill.core.events import (
    SOCKET_TIMEOUT_SECONDS,
    WRITTEN_CHANNEL,
    EventsUnavailable,
    Kind,
    StreamEntry,
    key_of,
    parse_streams,
    parse_written,
)

LISTEN_SECONDS = 1.0  # then a ping: a frozen server looks like a silent one
MAX_SILENCE_SECONDS = 3.0
READ_ENTRIES = 200  # of one stream per call; a caller that gets this many reads again


class EventReader:
    """Reads on one event loop; opens its connections when they are first needed.

    Args:
        redis_url: without one every call raises ``EventsUnavailable``.
    """

    def __init__(self, redis_url: str | None) -> None:
        self._redis: Redis | None = None
        if redis_url:
            self._redis = Redis.from_url(
                redis_url,
                socket_timeout=SOCKET_TIMEOUT_SECONDS,
                socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
                decode_responses=True,
            )

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    async def written(self) -> AsyncIterator[dict[str, Kind]]:
        """Yield the jobs whose streams grow, as it happens, each with the kind of its last entry.

        The first item is empty: from then on nothing is missed.

        Raises:
            EventsUnavailable: Redis is unavailable, or has been silent for ``MAX_SILENCE_SECONDS``.
        """
        async with self._client() as client, client.pubsub() as channel:
            await channel.subscribe(WRITTEN_CHANNEL)
            heard_at = time.monotonic()
            while True:
                message = await channel.get_message(timeout=LISTEN_SECONDS)
                now = time.monotonic()
                if message is not None:
                    heard_at = now
                    if message["type"] == "subscribe":
                        yield {}
                    elif message["type"] == "message":
                        yield parse_written(message["data"])
                elif now - heard_at > MAX_SILENCE_SECONDS:
                    raise EventsUnavailable("Redis has been silent for too long.")
                else:
                    await channel.ping()

    async def read(self, positions: Mapping[str, str]) -> list[StreamEntry]:
        """Read entries after the given ids, ``READ_ENTRIES`` of each stream at most; never waits.

        Args:
            positions: job id → the last stream id seen, ``0-0`` for none.

        Raises:
            EventsUnavailable: Redis is unavailable or too slow.
        """
        if not positions:
            return []
        names: dict[Any, Any] = {key_of(job_id): last for job_id, last in positions.items()}
        async with self._client() as client:
            return parse_streams(cast(Any, await client.xread(names, count=READ_ENTRIES)))

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Redis]:
        """The client for one call; its errors become ``EventsUnavailable``."""
        if self._redis is None:
            raise EventsUnavailable("No Redis is configured.")
        try:
            yield self._redis
        except (RedisError, OSError, TimeoutError) as error:
            raise EventsUnavailable(f"Redis did not answer: {error}") from error
