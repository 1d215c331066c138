"""With errors in every layer, the logs contain no prompt, no completion and no cookie."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.acceptance.stack import Stack
from tests.servers import RedisServer
from textmill.core.database.connections import make_engine, writing

PROMPT = "Seven purple elephants"
COOKIE = "5eca7e5eca7e5eca7e5eca7e5eca7e99"
KEY = "a-key-that-nobody-may-read"
# A rule that rows break: PostgreSQL's message about it quotes the whole row.
_RULES = {
    "submit": "ALTER TABLE jobs ADD CONSTRAINT no_submit CHECK (priority <> 0) NOT VALID",
    "finish": "ALTER TABLE jobs ADD CONSTRAINT no_finish CHECK (status <> 'succeeded') NOT VALID",
    "all": "ALTER TABLE jobs RENAME COLUMN prompt TO hidden",
}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_log_tells_of_a_prompt_or_a_cookie(
    make_stack: Callable[..., Stack], database_url: str, own_redis: RedisServer
) -> None:
    stack = make_stack(database_url, own_redis, TEXTMILL_LOG_LEVEL="debug").start()
    headers = {"Cookie": f"textmill_owner={COOKIE}", "Idempotency-Key": KEY}
    body = {"prompt": PROMPT, "max_new_tokens": 5}

    def submit(**more: object) -> int:
        return stack.request("POST", "/api/v1/jobs", body | more, headers).status

    engine = make_engine(database_url, pool_size=1)
    with writing(engine) as connection:
        connection.execute(text(_RULES["finish"]))
    assert submit() == 202
    job = stack.wait(stack.request("GET", "/api/v1/jobs?limit=1").json["items"][0]["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "unstorable")
    headers["Idempotency-Key"] += "-again"
    for rule in ("submit", "all"):
        with writing(engine) as connection:
            connection.execute(text(_RULES[rule]))
        assert submit() in {409, 503}
        stack.request("GET", f"/api/v1/jobs?q={PROMPT.replace(' ', '+')}", headers=headers)
    engine.dispose()
    assert submit(temperature=PROMPT, top_k=[PROMPT]) == 422
    _send_nonsense(stack)
    own_redis.stop()
    submit()
    stack.stop()
    logs = "\n".join(path.read_text() for path in stack.folder.rglob("*.log"))
    assert "database_refused" in logs
    assert "outcome_cannot_be_stored" in logs
    for secret in (PROMPT, *PROMPT.split(), COOKIE, KEY):
        assert secret not in logs


def _send_nonsense(stack: Stack) -> None:
    """Requests that break in the HTTP server itself."""
    for start in ("GET /{} HTTP/9.9", "G@T /{} HTTP/1.1", "POST /api/v1/jobs HTTP/1.1"):
        lines = [start.format(PROMPT.replace(" ", "%20")), f"Cookie: textmill_owner={COOKIE}"]
        lines += ["Transfer-Encoding: nonsense", f"{KEY} {KEY}", "", PROMPT]
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", stack.port), timeout=5) as connection,
        ):
            connection.sendall("\r\n".join(lines).encode())
            connection.recv(1000)
