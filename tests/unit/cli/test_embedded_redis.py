from __future__ import annotations

import stat
from pathlib import Path

import pytest

from textmill.cli.embedded_redis import configure, find_server, is_usable, read_version


def program(folder: Path, name: str, version: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0 bits=64'\n")
    path.chmod(0o755)
    return path


def test_a_server_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = program(tmp_path, "valkey-server", "8.1.0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    program(tmp_path, "redis-server", "5.0.7")  # too old: passed over
    assert find_server() == wanted


def test_without_one_on_the_path_the_wheel_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = find_server()
    assert found is not None
    assert (read_version(found) or ()) >= (6, 2)


@pytest.mark.parametrize(("version", "usable"), [("6.0.16", False), ("6.2.0", True), ("?", False)])
def test_only_new_enough_servers_are_usable(tmp_path: Path, version: str, usable: bool) -> None:
    assert is_usable(program(tmp_path, "redis-server", version)) is usable


def test_a_program_that_is_not_there_has_no_version(tmp_path: Path) -> None:
    assert read_version(tmp_path / "missing") is None


def test_the_configuration_is_private_and_never_evicts(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" folder'
    server = configure(Path("/usr/bin/redis-server"), folder)
    path = Path(server.command[1])
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "maxmemory-policy noeviction" in text
    assert "bind 127.0.0.1\n" in text
    assert f"requirepass {server.password}" in text
    assert r'dir "' + str(tmp_path) + r'/a \"quoted\" folder"' in text
    assert server.url == f"redis://:{server.password}@127.0.0.1:{server.port}/0"
    assert server.password not in " ".join(server.command)


def test_every_configuration_has_a_password_of_its_own(tmp_path: Path) -> None:
    first = configure(Path("redis-server"), tmp_path)
    assert configure(Path("redis-server"), tmp_path).password != first.password
