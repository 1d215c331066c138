from __future__ import annotations

import socket

import pytest

from textmill.cli.exits import CommandFailed
from textmill.cli.preflight import check_port


def test_a_free_port_is_fine_and_a_taken_one_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen()
        with pytest.raises(CommandFailed, match=rf"Port {port} on 127.0.0.1 is in use"):
            check_port("127.0.0.1", port)
        with pytest.raises(CommandFailed, match="is in use"):
            check_port("0.0.0.0", port)
    check_port("127.0.0.1", port)


def test_a_host_that_is_not_this_machine_is_named() -> None:
    with pytest.raises(CommandFailed, match=r"cannot listen on 192\.0\.2\.1"):
        check_port("192.0.2.1", 8000)
