"""The Caddyfile and the sample for nginx, run by the real programs where they are installed.

Their upstream answers as Textmill does: an event stream with ``X-Accel-Buffering: no``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.compose import DEPLOY, ROOT
from tests.servers import free_port

DOMAIN = "demo.example.org"
FORGED = "203.0.113.7"


class Upstream:
    """A server with one event stream, whose second event waits for ``may_continue``."""

    def __init__(self) -> None:
        self.may_continue, self.was_left = threading.Event(), threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/stream":
                    upstream._stream(self)
                else:
                    _answer(self, 200, dict(self.headers.items()))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                _answer(self, 200, {"length": len(self.rfile.read(length))})

            def log_message(self, *_: object) -> None:
                """Write nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("X-Accel-Buffering", "no")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b"data: first\n\n")
        if not self.may_continue.wait(0.01 if "leave" in str(handler.headers) else 20):
            handler.connection.settimeout(20)
            if handler.connection.recv(1) == b"":  # the proxy closed its connection
                self.was_left.set()
            return
        handler.wfile.write(b"data: second\n\n")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(handler: BaseHTTPRequestHandler, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


def caddy_command(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
    """The Caddyfile without TLS, which needs a domain."""
    text = (DEPLOY / "Caddyfile").read_text().replace("web:8000", f"127.0.0.1:{upstream}")
    (folder / "Caddyfile").write_text(text.replace("{\n", "{\n\tadmin off\n", 1))
    command = ["caddy", "run", f"--config={folder / 'Caddyfile'}", "--adapter=caddyfile"]
    return command, {"TEXTMILL_DOMAIN": f"http://{DOMAIN}:{port}", "HOME": str(folder)}


def nginx_command(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
    """The sample of docs/deployment.md; its certificate is replaced, and its ports are others."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    found = re.search(r"```nginx\n(.*?)```", page, re.DOTALL)
    assert found is not None
    sample = found[1].replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    sample = re.sub(r"listen 80;", f"listen 127.0.0.1:{free_port()};", sample)
    sample = re.sub(r"listen 443 ssl http2;", f"listen 127.0.0.1:{port};", sample)
    sample = re.sub(r"ssl_certificate.*;", "", sample)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""  # reads and writes the test's folder
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {paths}\n{sample} }}"
    )
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", "stderr"], {}


@pytest.fixture(params=["caddy", "nginx"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream) -> Iterator[int]:
    """The port of a proxy in front of the upstream."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} on PATH")
    port = free_port()
    make = caddy_command if request.param == "caddy" else nginx_command
    command, environment = make(tmp_path, port, upstream.port)
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stderr=log)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)  # polling a process's readiness: there is no event to await
    yield port
    process.terminate()
    process.wait(20)


@contextmanager
def asking(
    port: int, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.connect()
    method = "GET" if body is None else "POST"
    # A proxy may answer and close the connection before it has read the whole body.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, {"Host": DOMAIN} | (headers or {}))
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def test_an_event_arrives_before_the_next_one_is_sent(proxy: int, upstream: Upstream) -> None:
    with asking(proxy, "/stream", headers={"Accept-Encoding": "gzip"}) as response:
        assert response.readline() == b"data: first\n"
        upstream.may_continue.set()
        assert response.read() == b"\ndata: second\n\n"


def test_a_stream_that_its_client_leaves_ends_at_the_upstream(
    proxy: int, upstream: Upstream
) -> None:
    with asking(proxy, "/stream", headers={"Cookie": "leave"}) as response:
        assert response.readline() == b"data: first\n"
    assert upstream.was_left.wait(20)


def test_the_upstream_sees_the_host_and_the_last_address_is_the_clients(proxy: int) -> None:
    with asking(proxy, "/", headers={"X-Forwarded-For": FORGED}) as response:
        headers = {name.lower(): value for name, value in json.loads(response.read()).items()}
    assert headers["host"] == DOMAIN
    assert headers["x-forwarded-for"].split(", ")[-1] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"


def test_the_metrics_are_not_passed_on(proxy: int) -> None:
    with asking(proxy, "/metrics") as response:
        assert response.status == 404


def test_a_body_that_textmill_refuses_is_passed_on_and_a_larger_one_is_not(proxy: int) -> None:
    with asking(proxy, "/", b"x" * 300 * 1024) as response:
        assert json.loads(response.read()) == {"length": 300 * 1024}
    with asking(proxy, "/", b"x" * 600 * 1024) as response:
        assert response.status in {413, 502}  # Caddy 2.6 answers 502


def test_long_headers_are_passed_on(proxy: int) -> None:
    with asking(proxy, "/", headers={"Cookie": "c" * 12_000}) as response:
        assert response.status == 200
