"""``textmill up``: plans the processes of one machine and runs them under the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from textmill.cli.addresses import reachable_host, url_of
from textmill.cli.child import ChildSpec
from textmill.cli.console import Console
from textmill.cli.embedded_redis import LOOPBACK, EmbeddedRedis, configure, find_server
from textmill.cli.exits import EXIT_CONFIGURATION, CommandFailed
from textmill.cli.preflight import check_port, lock_home, prepare_home
from textmill.cli.probes import probe_http, probe_redis
from textmill.cli.supervisor import End, Plan, Probe, Supervisor, Timeouts
from textmill.core.catalog.file_state import ModelState
from textmill.core.catalog.live import forget_known
from textmill.core.catalog.models_file import load_catalog, models_file, read_catalog
from textmill.core.errors import SettingsError
from textmill.core.oidc_settings import require_packages
from textmill.core.settings import Settings

_WORKER = "worker-"
_MAX_DRAIN_SECONDS = 20.0  # leaves the worker 3 s to stop before it is killed


def run_up(settings: Settings, environment: Mapping[str, str]) -> None:
    """Run everything in the foreground until a signal.

    Raises:
        SettingsError: a setting or the models file cannot be used.
        CommandFailed: the start is refused, or a process failed permanently.
    """
    load_catalog(settings).served(settings.serve)
    require_packages(settings)
    prepare_home(settings.home)
    forget_known(settings)
    with lock_home(settings.home), contextlib.closing(Console()) as console:
        check_port(settings.host, settings.port)
        redis = None if settings.redis_url else _embed_redis(settings)
        plan = draw_plan(settings, environment, redis)
        console.note(f"Textmill starts; its state is in {settings.home}, its logs in logs/ there.")
        supervisor = Supervisor(plan, console, settings.home / "logs", Timeouts())
        asyncio.run(supervisor.run())
        console.note("Textmill has stopped.")


def draw_plan(
    settings: Settings, environment: Mapping[str, str], redis: EmbeddedRedis | None
) -> Plan:
    """The processes: Redis if it is embedded, the migration, one web process, the workers."""
    return _Planner(settings, environment, redis).plan()


def _embed_redis(settings: Settings) -> EmbeddedRedis:
    program = find_server()
    if program is None:
        raise CommandFailed(
            "No Redis server was found: install redis-server 6.2 or newer, run `make up`, which "
            "installs one, or set TEXTMILL_REDIS_URL.",
            EXIT_CONFIGURATION,
        )
    return configure(program, settings.home / "redis")


@dataclass(frozen=True, slots=True)
class _Planner:
    settings: Settings
    environment: Mapping[str, str]
    redis: EmbeddedRedis | None

    def plan(self) -> Plan:
        settings = self.settings
        return Plan(
            prerequisites=tuple(self._prerequisites()),
            preparations=(self._textmill("migrate", "migrate"),),
            services=(self._textmill("web", "web"), *self._workers()),
            readiness=self._readiness,
            after_end=self._recover_worker,
            inputs=self._inputs,
            on_ready=self._first_key,
            ready_line=f"Textmill is ready: {url_of(settings.host, settings.port)}",
        )

    def _prerequisites(self) -> list[tuple[ChildSpec, Probe]]:
        if self.redis is None:
            return []
        port, password = self.redis.port, self.redis.password

        async def answers() -> str | None:
            return await probe_redis(LOOPBACK, port, password)

        return [(ChildSpec("redis", self.redis.command, dict(self.environment)), answers)]

    def _workers(self) -> list[ChildSpec]:
        workers = []
        for index in range(self.settings.num_workers):
            extra = {}
            if self.settings.worker_metrics_port:
                number = self.settings.worker_metrics_port + index
                extra["TEXTMILL_WORKER_METRICS_PORT"] = str(number)
            # TERM: a worker whose supervisor was killed still returns its jobs.
            workers.append(self._textmill(f"{_WORKER}{index + 1}", "worker", extra, "TERM"))
        return workers

    def _recover_worker(self, end: End) -> ChildSpec | None:
        """Return a worker's jobs to the queue at once; the web process holds none."""
        if not end.spec.name.startswith(_WORKER):
            return None
        spec = self._textmill("recovery", "recover-worker", death_signal="KILL")
        arguments = (end.spec.name, str(end.pid), end.reason, f"{end.pause_seconds:g}")
        return replace(spec, command=(*spec.command, "--", *arguments))

    def _inputs(self) -> object:
        """The state of the models file and of the models' files: sizes and times of change."""
        path = models_file(self.settings)
        stat: os.stat_result | None = None
        states: list[ModelState] = []
        with contextlib.suppress(OSError, ValueError, SettingsError):
            stat = path.stat()
            states = [ModelState.of(model) for model in read_catalog(path)]
        return path, stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino), states

    def _textmill(
        self,
        name: str,
        command: str,
        extra: Mapping[str, str] | None = None,
        death_signal: str = "KILL",
    ) -> ChildSpec:
        environment = {
            **self.environment,
            **self.settings.to_environment(),
            "TEXTMILL_DRAIN_SECONDS": str(min(self.settings.drain_seconds, _MAX_DRAIN_SECONDS)),
            "PYTHONUNBUFFERED": "1",
            **(extra or {}),
        }
        if self.redis is not None:
            environment["TEXTMILL_REDIS_URL"] = self.redis.url
        return ChildSpec(
            name, (sys.executable, "-P", "-m", "textmill", command), environment, death_signal
        )

    async def _first_key(self) -> Sequence[str]:
        """Create the first admin key where keys are used, and show it."""
        if not self.settings.is_open:
            return ()
        spec = self._textmill("keys", "keys")
        process = await asyncio.create_subprocess_exec(
            *spec.command, "create-first", env=spec.environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        token = output.decode(errors="replace").strip()
        if process.returncode != 0:
            return ("The first admin key could not be created; run `textmill keys create`.",)
        if not token:
            return ()
        return (f"The first admin key, which is not shown again: {token}",)

    async def _readiness(self) -> str | None:
        host = reachable_host(self.settings.host)
        return await probe_http(host, self.settings.port, "/readyz")
