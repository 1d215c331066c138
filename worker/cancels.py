"""Receives cancel messages over Redis; they only save time, as the row is authoritative."""

from __future__ import annotations

import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from textmill.core.events import CANCEL_CHANNEL, make_redis

LISTEN_SECONDS = 1.0  # one wait for a message; below the socket time-out
RETRY_SECONDS = 2.0


class CancelListener:
    """A thread that calls back when a job is canceled.

    Args:
        redis_url: of Redis.
        on_cancel: called after each message; it queries the database for this worker's jobs.
    """

    def __init__(self, redis_url: str, on_cancel: Callable[[], None]) -> None:
        self._url = redis_url
        self._on_cancel = on_cancel
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancel-listener", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_seconds: float = 3.0) -> None:
        """Stop listening."""
        self._closing.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except (RedisError, OSError):
                self._closing.wait(RETRY_SECONDS)

    def _listen(self) -> None:
        with make_redis(self._url) as client, client.pubsub() as channel:
            channel.subscribe(CANCEL_CHANNEL)
            while not self._closing.is_set():
                message = channel.get_message(
                    ignore_subscribe_messages=True, timeout=LISTEN_SECONDS
                )
                if message is not None:
                    self._on_cancel()
