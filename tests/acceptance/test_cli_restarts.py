"""``textmill generate`` while the web process under it is killed and started again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from tests.acceptance.stack import Stack
from tests.servers import RedisServer

LENGTH = 1900  # tokens: long enough to be caught in the middle
NUM_SEEN_BYTES = 40


@contextmanager
def generating(stack: Stack, *options: str) -> Any:
    command = [sys.executable, "-m", "textmill", "generate", "Again", "--url", stack.url, *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # communicate() does not return what is read here
        env=os.environ | {"PYTHONUTF8": "1"},
    ) as process:
        yield process
        process.kill()


def the_only_job(stack: Stack) -> Any:
    (job,) = stack.request("GET", "/api/v1/jobs").json["items"]
    return stack.wait(job["id"])


def test_the_text_goes_on_where_it_was_when_web_comes_back(
    make_stack: Callable[..., Stack], database_url: str, redis_server: RedisServer
) -> None:
    stack = make_stack(database_url, redis_server).start()
    options = ("--strategy", "sampling", "--seed", "3", "--max-new-tokens", str(LENGTH))
    with generating(stack, *options) as process:
        seen = process.stdout.read(NUM_SEEN_BYTES)
        for _ in range(2):
            stack.kill_web()
            stack.start_web()
            seen += process.stdout.read(NUM_SEEN_BYTES)
        rest, errors = process.communicate(timeout=120)
    stack.wait_alive()
    job = the_only_job(stack)
    assert (process.returncode, errors.decode()) == (0, "")
    assert seen + rest == job["text"].encode() + b"\n"
    assert job["usage"]["completion_tokens"] == LENGTH


def test_a_job_is_submitted_once_when_web_comes_up_late(
    make_stack: Callable[..., Stack], sqlite_url: str, redis_server: RedisServer
) -> None:
    stack = make_stack(sqlite_url, redis_server)
    stack.add_worker()
    with generating(stack, "--max-new-tokens", "5") as process:
        stack.start_web()
        stack.wait_ready()
        printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.decode()) == (0, "")
    assert printed == the_only_job(stack)["text"].encode() + b"\n"
