"""``textmill up`` with all its processes and a tiny model."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.up import COMMAND, FIRST_START_SECONDS, Up, run, up_environment
from tests.processes import descendants, is_alive

SECOND_START_SECONDS = 10
STOP_SECONDS = 30


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import build_tiny_llama

    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_tiny_llama(folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A folder and a port of the test's own."""
    return up_environment(tmp_path / "home")


@pytest.fixture
def start(
    environment: dict[str, str], tiny_model: Path, tmp_path: Path
) -> Iterator[Callable[[], Up]]:
    models = tmp_path / "models.toml"
    models.write_text(f'[[models]]\nname = "tiny"\nsource = "{tiny_model}"\ndefault = true\n')
    with contextlib.ExitStack() as stack:

        def up() -> Up:
            running = Up(environment | {"TEXTMILL_MODELS": str(models)})
            return stack.enter_context(running.killed_at_the_end())

        yield up


def described(pid: int) -> str:
    """A process's command, and the kernel functions in which its threads wait."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    threads = Path(f"/proc/{pid}/task").iterdir()
    return f"{pid} {command} {[(thread / 'wchan').read_text() for thread in threads]}"


def await_gone(pids: list[int], limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {[described(pid) for pid in left]}"
        time.sleep(0.05)  # they are not children of this process: no event to await


def test_it_serves_a_job_stops_cleanly_and_starts_again_in_seconds(
    start: Callable[[], Up], environment: dict[str, str]
) -> None:
    first = start()
    first.await_ready(FIRST_START_SECONDS)
    generated = run(environment, "generate", "One two", "--max-new-tokens", "5", "--json")
    assert generated.returncode == 0, generated.stderr
    job = json.loads(generated.stdout)
    assert job["usage"]["completion_tokens"] > 0

    processes = descendants(first.process.pid)
    assert len(processes) >= 3  # redis, web, a worker
    first.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert first.finish() == 0, "".join(first.lines)
    assert time.monotonic() - asked < STOP_SECONDS
    assert sum("Textmill is ready" in line for line in first.lines) == 1
    assert not any("did not end in time" in line for line in first.lines)
    assert [pid for pid in processes if is_alive(pid)] == []

    second = start()
    second.await_ready(SECOND_START_SECONDS)
    assert second.read(f"/api/v1/jobs/{job['id']}")["text"] == job["text"]
    second.process.send_signal(signal.SIGINT)
    assert second.finish() == 0


def test_nothing_lingers_when_the_supervisor_is_killed_and_it_starts_again(
    start: Callable[[], Up],
) -> None:
    first = start()
    first.await_ready(FIRST_START_SECONDS)
    processes = descendants(first.process.pid)
    first.process.kill()
    first.finish()
    await_gone(processes, STOP_SECONDS)
    second = start()
    second.await_ready(FIRST_START_SECONDS)


def test_a_second_up_in_the_same_folder_is_refused(
    start: Callable[[], Up], environment: dict[str, str]
) -> None:
    start().await_ready(FIRST_START_SECONDS)
    result = run(environment, "up")
    assert result.returncode == 1
    assert "is already running in" in result.stderr


def test_a_taken_port_is_one_sentence_and_nothing_is_started(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["TEXTMILL_PORT"]))):
        result = run(environment, "up")
    assert result.returncode == 1
    assert result.stderr.startswith(f"textmill: Port {environment['TEXTMILL_PORT']} on 127.0.0.1")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_state_folder_that_cannot_be_written_is_one_sentence(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")  # not even root can make a folder in it
    result = run(environment | {"TEXTMILL_HOME": str(tmp_path / "file" / "home")}, "up")
    assert result.returncode == 78
    assert "TEXTMILL_HOME" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_database_that_is_away_stops_the_start_with_its_reason(
    environment: dict[str, str],
) -> None:
    away = {"TEXTMILL_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    result = run(environment | away, "up")
    assert result.returncode == 1
    assert result.stderr.startswith("textmill: migrate: The database cannot be migrated")
    assert "Textmill is ready" not in result.stdout


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_database_that_another_program_locks_is_waited_for_and_said_so(
    start: Callable[[], Up], environment: dict[str, str], mode: str
) -> None:
    home = Path(environment["TEXTMILL_HOME"])
    home.mkdir()
    if mode == "IMMEDIATE":  # an older database; an EXCLUSIVE one was not made by us
        assert run(environment, "migrate").returncode == 0
    lock = sqlite3.connect(home / "textmill.db", isolation_level=None)
    with contextlib.closing(lock):
        lock.execute("CREATE TABLE IF NOT EXISTS theirs (a)")
        lock.execute(f"BEGIN {mode}")
        interrupted = start()
        words = "textmill.db is locked by another program; waiting until it is free"
        read_until(interrupted, words)
        interrupted.process.send_signal(signal.SIGINT)  # Ctrl-C works while it waits
        assert interrupted.finish() == 0
        waiting = start()
        for _ in range(2):
            read_until(waiting, words)
        lock.execute("ROLLBACK")
        waiting.await_ready(FIRST_START_SECONDS)
        waiting.process.send_signal(signal.SIGTERM)
        assert waiting.finish() == 0


def read_until(up: Up, words: str) -> None:
    """Read the supervisor's output; the suite's time-out is the limit."""
    assert up.process.stdout is not None
    for line in up.process.stdout:
        up.lines.append(line)
        if words in line:
            return
    raise AssertionError(f"{words!r} never came:\n" + "".join(up.lines))


def test_a_migration_waits_for_the_one_that_runs_elsewhere(
    environment: dict[str, str], postgres_url: str
) -> None:
    from sqlalchemy import create_engine, text

    from textmill.migrations.upgrade import _MIGRATION_LOCK

    engine = create_engine(postgres_url)
    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        connection = stack.enter_context(engine.connect())
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        process = subprocess.Popen(
            [*COMMAND, "migrate"],
            env=environment | {"TEXTMILL_DATABASE_URL": postgres_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        assert "The database is locked by another program" in process.stdout.readline()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
        connection.commit()
        assert process.wait(60) == 0
