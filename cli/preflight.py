"""Checks that ``up`` makes before it starts anything: the state folder and the port."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from textmill.cli.exits import EXIT_CONFIGURATION, CommandFailed
from textmill.core.file_lock import file_lock

_LOCK_NAME = "up.lock"


def prepare_home(home: Path) -> None:
    """Create the state folder and check that it is writable.

    Raises:
        CommandFailed: it is not.
    """
    try:
        for folder in (home, home / "logs"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # prompts and texts are private
        probe = home / f".write-test-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise CommandFailed(
            f"The state folder {home} cannot be written ({error.strerror}); "
            "change its permissions or set TEXTMILL_HOME to another folder.",
            EXIT_CONFIGURATION,
        ) from None


@contextlib.contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Lock the state folder for this process.

    Raises:
        CommandFailed: another ``up`` holds the lock.
    """
    path = home / _LOCK_NAME
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(file_lock(path, is_blocking=False))
        except BlockingIOError:
            holder = path.read_text(encoding="utf-8").strip()
            raise CommandFailed(
                f"Textmill is already running in {home}"
                + (f" (process {holder})" if holder else "")
                + "; stop it first or set TEXTMILL_HOME to another folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_port(host: str, port: int) -> None:
    """Check that the web process will be able to listen.

    Raises:
        CommandFailed: the address or the port cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise CommandFailed(f"TEXTMILL_HOST is {host!r}, which has no address.") from None
    except OSError as error:
        raise CommandFailed(port_sentence(host, port, error)) from None


def port_sentence(host: str, port: int, error: OSError) -> str:
    """Why the web process cannot listen, and what to do about it."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use; stop the program that uses it or set TEXTMILL_PORT "
            "to another number."
        )
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}; set TEXTMILL_PORT above 1023."
    return f"Textmill cannot listen on {host}:{port}: {error.strerror}."
