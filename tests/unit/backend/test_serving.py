"""The web process's limits from the settings, and how many files it may open."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from textmill.backend.server.limits import Allowance, visitor_of
from textmill.backend.serving import MAX_ARENAS, limits_of, raise_open_files
from textmill.core.settings import Settings

NUM_ARENAS = """
import ctypes, os, tempfile, threading
from textmill.backend.serving import limit_arenas

limit_arenas()
together = threading.Barrier(12)
def allocate():
    together.wait()
    held = [bytearray(20_000) for _ in range(100)]
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
path = tempfile.mktemp()
file = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(open(path).read().count("<heap nr="))
os.unlink(path)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "after", "is_warned"),
    [
        (100, 5_000, 1_000, 1_000, False),
        (1_000, 5_000, 900, 1_000, False),
        (100, 500, 1_000, 500, True),
        (100, resource.RLIM_INFINITY, 1_000, 1_000, False),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1_000, resource.RLIM_INFINITY, False),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_possible(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, after: int, is_warned: bool
) -> None:
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(2), new))
    with capture_logs() as logs:
        raise_open_files(wanted)
    assert limits == [after, hard]
    assert [line["event"] for line in logs] == ["open_files_limited"] * is_warned


def test_the_limit_per_visitor_is_at_most_the_total() -> None:
    limits = limits_of(Settings.from_environment({"TEXTMILL_MAX_STREAMS": "10"}))
    assert (limits.max_held, limits.max_held_per_visitor) == (10, 10)
    assert limits.max_connections > limits.max_connections_per_visitor > 10


def test_one_address_may_open_two_thousand_streams_by_default() -> None:
    limits = limits_of(Settings.from_environment({}))
    assert limits.max_held_per_visitor >= 2_000
    assert limits.max_connections_per_visitor > limits.max_held_per_visitor


def test_an_allowance_counts_per_visitor_and_in_total() -> None:
    allowance = Allowance(total=3, per_visitor=2)
    assert [allowance.acquire("a") for _ in range(3)] == [True, True, False]
    assert [allowance.acquire("b") for _ in range(2)] == [True, False]
    allowance.release("a")
    assert allowance.acquire("b")
    assert allowance.num_open == 3


def test_an_allowance_counts_an_owner_over_all_its_addresses() -> None:
    allowance = Allowance(total=9, per_visitor=9)
    assert [allowance.acquire(address, "key:k", 2) for address in "abc"] == [True, True, False]
    assert allowance.acquire("a", "key:other", 2)
    assert allowance.acquire("a")
    allowance.release("a", "key:k")
    assert allowance.acquire("c", "key:k", 2)
    assert not allowance.acquire("c", "key:k", 2)


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_visitor_is_an_address_or_a_network_of_ipv6(address: str, visitor: str) -> None:
    assert visitor_of(address) == visitor


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_the_heap() -> None:
    """Twelve threads that allocate at the same time use one arena each without this."""
    done = subprocess.run(
        [sys.executable, "-c", NUM_ARENAS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= MAX_ARENAS
