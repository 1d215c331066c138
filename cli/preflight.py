"""What ``up`` checks before it starts anything: the state folder and the port."""

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
    """Make the state folder and see that it can be written.

    Raises:
        CommandFailed: it cannot.
    """
    try:
        for folder in (home, home / "logs"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # texts are private
        probe = home / f".write-test-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise CommandFailed(
            f"The state folder {home} cannot be written ({error.strerror}); "
            "mend its rights or set TEXTMILL_HOME to another folder.",
            EXIT_CONFIGURATION,
        ) from None


@contextlib.contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold the state folder for this process; the kernel lets go when the process dies.

    Raises:
        CommandFailed: another ``up`` holds it.
    """
    path = home / _LOCK_NAME
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(file_lock(path, is_blocking=False))
        except BlockingIOError:
            holder = path.read_text(encoding="utf-8").strip()
            raise CommandFailed(
                f"Textmill already runs in {home}"
                + (f" (process {holder})" if holder else "")
                + "; stop that one first or set TEXTMILL_HOME to another folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_port(host: str, port: int) -> None:
    """See that the web process will be able to listen.

    Raises:
        CommandFailed: it will not.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise CommandFailed(f"TEXTMILL_HOST is {host!r}, which names no address.") from None
    except OSError as error:
        raise CommandFailed(port_sentence(host, port, error)) from None


def port_sentence(host: str, port: int, error: OSError) -> str:
    """Why the web process cannot listen, and what to do about it."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken; stop what listens there or set TEXTMILL_PORT "
            "to another number."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than this user has; set TEXTMILL_PORT above 1023."
    return f"Textmill cannot listen on {host}:{port}: {error.strerror}."
