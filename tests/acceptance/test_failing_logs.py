"""If the log cannot be written, only log lines are lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.stack import Stack
from tests.servers import RedisServer
from textmill.migrations.upgrade import upgrade

FULL = Path("/dev/full")  # as a file on a disk that is full


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
def test_jobs_are_done_and_handed_back_while_the_log_s_disk_is_full(
    make_stack: Callable[..., Stack], own_redis: RedisServer, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/textmill.db"
    upgrade(url)
    stack = make_stack(url, own_redis, TEXTMILL_DRAIN_SECONDS="0")
    stack.log = FULL
    stack.start()
    assert stack.generate(max_new_tokens=5)["status"] == "succeeded"

    path = f"/api/v1/jobs/{stack.submit(max_new_tokens=1900)['id']}"
    while (status := stack.request("GET", path).json["status"]) == "queued":
        time.sleep(0.01)  # a claim cannot be awaited as an event
    assert status == "running"
    assert stack.drain_worker(stack.workers[0]) == 0
    assert stack.request("GET", path).json["status"] == "queued"
