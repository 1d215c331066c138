"""``make audit`` with the real pip-audit, which asks a service on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "scripts" / "audit_packages.py"
    spec = importlib.util.spec_from_file_location("audit_packages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def service(vulnerable: set[str], hang: threading.Event | None = None) -> Iterator[str]:
    """The address of a service in which all versions of some packages are vulnerable."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if hang is not None:
                hang.wait()
            name = query["package"]["name"]
            found = {"vulns": [_vulnerability(name)]} if name in vulnerable else {}
            body = json.dumps(found).encode()
            with contextlib.suppress(OSError):  # the client has given up
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        if hang is not None:
            hang.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _vulnerability(name: str) -> dict[str, Any]:
    versions = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}
    package = {"name": name, "ecosystem": "PyPI"}
    return {
        "id": f"TEST-{name}",
        "summary": "",
        "affected": [{"package": package, "ranges": [versions]}],
    }


def options(url: str) -> list[str]:
    return ["--vulnerability-service=osv", f"--osv-url={url}"]


def test_a_known_vulnerability_of_a_locked_package_fails(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with service({"jinja2", "flask", "torch"}) as url:
        assert script.main(options(url)) == 1
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("pip-audit: flask 3.") for line in printed)
    assert "pip-audit: torch 2.13.0: TEST-torch, fixed in 99.1" in printed  # without a hash
    assert printed[-1].startswith("pip-audit: 3 vulnerabilities in ")


def test_packages_without_known_vulnerabilities_pass(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "KNOWN_BAD", "insecure-package==0.1.0")
    with service({"insecure-package"}) as url:
        assert script.main(options(url)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("pip-audit: 0 vulnerabilities in ")
    assert int(printed.split()[4]) > 60


def test_a_service_that_knows_no_vulnerabilities_is_not_a_success(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with service(set()) as url:
        assert script.main(options(url)) == 0
    assert capsys.readouterr().out == (
        "pip-audit: not run: the service does not know the vulnerabilities of jinja2==2.10\n"
    )


def test_an_unreachable_service_does_not_fail(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(options(f"http://127.0.0.1:{free_port()}/v1/query")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("pip-audit: not run: ")
    assert printed.count("\n") == 1


def test_a_service_that_hangs_is_waited_for_no_longer_than_the_limit(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "LIMIT_SECONDS", 6.0)
    with service(set(), hang=threading.Event()) as url:
        assert script.main(options(url)) == 0
    assert capsys.readouterr().out == "pip-audit: not run: no complete answer within 6 s\n"


def test_locks_that_cannot_be_read_fail(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lock = tmp_path / "broken.txt"
    lock.write_text("flask>=3\n")
    monkeypatch.setattr(script, "LOCKS", ((str(lock),),))
    assert script.main([]) == 2
    assert "the locks cannot be read" in capsys.readouterr().out
