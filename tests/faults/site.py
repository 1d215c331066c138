"""The product under faults: as separate processes, or under ``textmill up``.

``PlainSite`` starts web and workers one by one and restarts those that end, as a container runtime
does, without informing the product. ``UpSite`` runs ``textmill up``, whose supervisor detects the
end of its children.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sqlalchemy import Engine, create_engine, text

from tests.acceptance.stack import Stack
from tests.faults.bodies import MARKER
from tests.faults.client import COOKIE
from tests.faults.proxy import TcpProxy
from tests.faults.reaper import REAPER
from tests.kernels import KERNEL_DIR
from tests.processes import command_of, descendants, is_alive, send
from tests.servers import PostgresServer, RedisServer, free_port
from textmill.core.failpoints import VARIABLE as FAILPOINTS_VARIABLE
from textmill.migrations.upgrade import upgrade

NUM_WORKERS = 2
START_SECONDS = 240.0  # two cores may be busy with other work
STOP_SECONDS = 40.0
RESTART_SECONDS = 1.0  # before a container runtime restarts a process
_MIGRATING = threading.Lock()  # Alembic runs one migration at a time in a process
SETTINGS = {
    "TEXTMILL_SLOTS": "4",
    "TEXTMILL_DRAIN_SECONDS": "2",
    "TEXTMILL_MIN_FREE_MIB": "0",  # the disk of disk-full is smaller, and is to fill up
    "OMP_NUM_THREADS": "1",
}


class SiteError(Exception):
    """The product did not start or recover; the message contains the ends of its logs."""


class Site:
    """The common part of both kinds: folder, database, failpoints, and observation from outside."""

    is_supervised = False

    def __init__(
        self,
        database: str,
        model: Path,
        settings: Mapping[str, str] | None = None,
        *,
        disk_mib: int = 0,
    ) -> None:
        """Create the folder, the database and a copy of the model; start nothing.

        Args:
            database: ``sqlite`` or ``postgresql``.
            model: the folder of a model; the site uses a copy, which faults may damage.
            settings: settings of the product that override the usual ones.
            disk_mib: the size of a separate disk for the database; 0 for none.
        """
        self.database = database
        self.folder = Path(tempfile.mkdtemp(prefix="textmill-faults-"))
        REAPER.watch(self.folder)
        self.folder.chmod(0o755)  # the PostgreSQL server's user needs access
        self.home = self.folder / "home"
        self.home.mkdir()
        self.failpoints = self.folder / "failpoints"
        self.failpoints.mkdir()
        self.model = self.folder / "model"
        shutil.copytree(model, self.model)
        self.models_file = self.folder / "models.toml"
        self.write_models()
        self.port = free_port()
        self.small_disk = self.home if database == "sqlite" else self.folder / "postgres"
        if disk_mib:
            self.small_disk.mkdir(exist_ok=True)
            _mount(self.small_disk, disk_mib)
        self._is_mounted = bool(disk_mib)
        self.postgres: PostgresServer | None = None
        self.settings = SETTINGS | dict(settings or {})
        self.database_url = self._make_database()
        self._engine: Engine | None = None

    def write_models(self) -> None:
        """The models file as it should be."""
        self.models_file.write_text(
            '[[models]]\nname = "tiny"\nsource = "./model"\ndtype = "float32"\ndefault = true\n'
        )

    def _make_database(self) -> str:
        if self.database == "sqlite":
            return f"sqlite:///{self.home}/textmill.db"
        folder = self.folder / "postgres"
        folder.mkdir(exist_ok=True)
        self.postgres = PostgresServer(folder)
        self.postgres.start()
        return self.postgres.url()

    # ---- to be said by the two ---------------------------------------------------------------

    def start(self) -> None:
        """Start all processes and wait until the site is healthy.

        Raises:
            SiteError: it was not healthy in time.
        """
        raise NotImplementedError

    def worker_pids(self) -> list[int]:
        """The running worker processes."""
        raise NotImplementedError

    def web_pids(self) -> list[int]:
        """The running web processes."""
        raise NotImplementedError

    def server_pids(self) -> list[int]:
        """Redis and PostgreSQL."""
        raise NotImplementedError

    def stop(self) -> None:
        """End every process that was started."""
        raise NotImplementedError

    # ---- from outside ------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The database as the verdict reads it, without a proxy."""
        if self._engine is None:
            options = {"timeout": 10} if self.database == "sqlite" else {"connect_timeout": 5}
            self._engine = create_engine(
                self.database_url, pool_pre_ping=True, connect_args=options
            )
        return self._engine

    def versions(self) -> dict[str, str]:
        """The versions of the servers."""
        if self.database != "postgresql":
            return {}
        with self.engine.connect() as connection:
            return {"postgresql": connection.exec_driver_sql("SHOW server_version").scalar_one()}

    def product_pids(self) -> list[int]:
        """Web and workers."""
        return [*self.web_pids(), *self.worker_pids()]

    def arm(self, point: str, subject: str = "", *, always: bool = False) -> None:
        """Arm a failpoint."""
        name = f"{point}.always" if always else point
        made = self.folder / f"{name}.new"
        made.write_text(subject)
        made.rename(self.failpoints / name)  # atomically: a process may read it at any moment

    def disarm(self) -> None:
        """Disarm all failpoints."""
        for file in self.failpoints.iterdir():
            file.unlink(missing_ok=True)

    def is_armed(self, point: str) -> bool:
        """Whether no process has reached a failpoint yet."""
        return (self.failpoints / point).exists()

    def is_healthy(self) -> bool:
        """Whether web is ready and every worker has sent a heartbeat."""
        pids = self.worker_pids()
        if len(pids) < NUM_WORKERS or self._status("/readyz") != 200:
            return False
        try:
            with self.engine.connect() as connection:
                seen = connection.execute(text("SELECT id FROM workers")).scalars().all()
        except Exception:  # a database may raise any error during a fault
            return False
        return all(any(f"-{pid}-" in name for name in seen) for pid in pids)

    def await_healthy(self, seconds: float = START_SECONDS) -> None:
        """Wait until the site is healthy.

        Raises:
            SiteError: it was not healthy in time.
        """
        deadline = time.monotonic() + seconds
        while not self.is_healthy():
            if time.monotonic() > deadline:
                raise SiteError(f"not healthy within {seconds:g} s:\n{self.tails()}")
            time.sleep(0.25)  # other processes' readiness cannot be awaited as an event

    def log_files(self) -> list[Path]:
        """The logs of all processes."""
        logs = [*self.folder.glob("*.log"), *self.home.glob("*.log"), *self.home.glob("logs/*")]
        if self.postgres is not None:
            logs.append(self.postgres.log)
        return [log for log in logs if log.is_file()]

    def marked_lines(self) -> list[str]:
        """Log lines that contain a prompt or a visitor's cookie."""
        found = []
        for log in self.log_files():
            for line in log.read_text(errors="replace").splitlines():
                if MARKER in line or COOKIE in line:
                    found.append(f"{log.name}: {line[:300]}")
        return found

    def tails(self) -> str:
        return "\n".join(
            f"== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.log_files()
        )

    def close(self) -> None:
        """End all processes and remove the folder."""
        with contextlib.suppress(Exception):  # an error must not stop the cleaning up
            self.stop()
        if self._engine is not None:
            self._engine.dispose()
        if self.postgres is not None:
            self.postgres.close()
        if self._is_mounted:
            subprocess.run(["umount", "--lazy", str(self.small_disk)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        REAPER.forget(self.folder)

    def _status(self, path: str) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class PlainSite(Site):
    """Web and two workers, each a process that is restarted when it ends."""

    def __init__(
        self,
        database: str,
        model: Path,
        settings: Mapping[str, str] | None = None,
        *,
        is_proxied: bool = False,
        disk_mib: int = 0,
    ) -> None:
        super().__init__(database, model, settings, disk_mib=disk_mib)
        with _MIGRATING:
            upgrade(self.database_url)
        self.redis = RedisServer()
        REAPER.watch(Path(self.redis.folder))
        self.redis.start()
        self.redis_proxy: TcpProxy | None = None
        self.database_proxy: TcpProxy | None = None
        self.extra: list[subprocess.Popen[bytes]] = []  # started by a fault; not restarted
        extra = {FAILPOINTS_VARIABLE: str(self.failpoints)}
        if is_proxied:
            extra |= self._make_proxies()
        self.stack = Stack(
            self.home,
            self.database_url,
            self.redis,
            self.models_file,
            self.settings | extra,
            log=self.folder / "product.log",  # not on the small disk
        )
        self.stack.port = self.port
        self._num_homes = 0
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None

    def _make_proxies(self) -> dict[str, str]:
        self.redis_proxy = TcpProxy(self.redis.port)
        changed = {"TEXTMILL_REDIS_URL": f"redis://127.0.0.1:{self.redis_proxy.port}/0"}
        if self.postgres is not None:
            self.database_proxy = TcpProxy(self.postgres.port)
            changed["TEXTMILL_DATABASE_URL"] = self.postgres.url(port=self.database_proxy.port)
        return changed

    def start(self) -> None:
        with self._lock:
            self.stack.start_web()
            while len(self.stack.workers) < NUM_WORKERS:
                self._add_worker()
        self._closing.clear()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        self.await_healthy()

    def worker_pids(self) -> list[int]:
        with self._lock:
            return [worker.pid for worker in self.stack.workers if worker.poll() is None]

    def web_pids(self) -> list[int]:
        with self._lock:
            web = self.stack.web
        if web is None or web.poll() is not None:
            return []
        return [web.pid, *descendants(web.pid)]

    def server_pids(self) -> list[int]:
        redis = self.redis.process
        return [
            *([redis.pid] if redis is not None else []),
            *(self.postgres.pids() if self.postgres is not None else []),
        ]

    def replace_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """Replace the youngest worker by one with additional environment variables."""
        with self._lock:
            gone = self.stack.workers.pop()
            fresh = self._add_worker(**environment)
        gone.terminate()
        _await_end(gone)
        return fresh

    def stop(self) -> None:
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join(5)
            self._keeper = None
        send([*self.product_pids(), *self.server_pids()], signal.SIGCONT)
        for process in self.extra:
            process.kill()
            process.wait()
        self.stack.stop()
        for proxy in (self.redis_proxy, self.database_proxy):
            if proxy is not None:
                proxy.close()
        self.redis.stop()
        shutil.rmtree(self.redis.folder, ignore_errors=True)
        REAPER.forget(Path(self.redis.folder))

    def _add_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """A worker on its own machine, so that no other worker detects its end."""
        self._num_homes += 1
        home = self.home / f"worker-{self._num_homes}"
        return self.stack.add_worker(TEXTMILL_HOME=str(home), **environment)

    def _keep(self) -> None:
        """Restart processes that ended; a short pause limits the load of a crash loop."""
        while not self._closing.wait(RESTART_SECONDS / 2):
            with self._lock:
                ended = [w for w in self.stack.workers if w.poll() is not None]
                is_web_gone = self.stack.web is not None and self.stack.web.poll() is not None
            if not ended and not is_web_gone:
                continue
            if self._closing.wait(RESTART_SECONDS / 2):
                return
            with self._lock:
                if is_web_gone:
                    self.stack.start_web()
                for worker in ended:
                    if worker in self.stack.workers:
                        self.stack.workers.remove(worker)
                        self._add_worker()


class UpSite(Site):
    """``textmill up`` with its own Redis."""

    is_supervised = True

    def __init__(self, database: str, model: Path, settings: Mapping[str, str] | None = None):
        super().__init__(database, model, settings)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TEXTMILL_")}
        environment |= {"TEXTMILL_KERNELS": str(KERNEL_DIR)} | self.settings
        environment |= {
            "TEXTMILL_HOME": str(self.home),
            "TEXTMILL_PORT": str(self.port),
            "TEXTMILL_DATABASE_URL": self.database_url,
            "TEXTMILL_MODELS": str(self.models_file),
            "TEXTMILL_WORKERS": str(NUM_WORKERS),
            FAILPOINTS_VARIABLE: str(self.failpoints),
        }
        with (self.folder / "up.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "textmill", "up"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.await_healthy()

    @property
    def is_up(self) -> bool:
        """Whether the supervisor runs."""
        return self.process is not None and self.process.poll() is None

    def await_healthy(self, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_healthy():
            if not self.is_up:
                raise SiteError(f"`up` has ended:\n{self.tails()}")
            if time.monotonic() > deadline:
                raise SiteError(f"not healthy within {seconds:g} s:\n{self.tails()}")
            time.sleep(0.25)

    def worker_pids(self) -> list[int]:
        return list(self._children("worker"))

    def web_pids(self) -> list[int]:
        return list(self._children("web"))

    def server_pids(self) -> list[int]:
        own = [pid for pid in self.all_pids() if "redis-server" in " ".join(command_of(pid)[:1])]
        return [*own, *(self.postgres.pids() if self.postgres is not None else [])]

    def all_pids(self) -> list[int]:
        """All descendants of the supervisor."""
        return descendants(self.process.pid) if self.process is not None else []

    def kill_supervisor(self) -> list[int]:
        """Kill the supervisor with SIGKILL; return its descendants."""
        pids = self.all_pids()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        return pids

    def stop(self) -> None:
        if self.process is None:
            return
        pids = self.all_pids()
        send([self.process.pid, *pids], signal.SIGCONT)
        self.process.terminate()
        _await_end(self.process)
        send([pid for pid in pids if is_alive(pid)], signal.SIGKILL)

    def _children(self, command: str) -> Iterator[int]:
        for pid in self.all_pids():
            if command_of(pid)[-2:] == ["textmill", command] and is_alive(pid):
                yield pid


def _mount(folder: Path, mib: int) -> None:
    """Mount a disk of this size, in memory."""
    options = f"size={mib}m,mode=0755"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was asked to end; kill it if it does not."""
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
