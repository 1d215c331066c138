"""Faults of Redis, PostgreSQL, the SQLite file and the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import redis
from sqlalchemy import create_engine

from tests.faults.moment import Fault, Moment, MomentError
from tests.faults.proxy import Mode, TcpProxy
from tests.faults.verdict import Bounds
from tests.faults.worker_faults import undo_all
from tests.processes import send

ANSWERED = Bounds(answer_seconds=5.0, all_answered=True)
POSTGRESQL = ("postgresql",)
_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


# ---- Redis ----------------------------------------------------------------------------------


def kill_redis(moment: Moment) -> None:
    moment.strike()
    moment.site.redis.stop()


def start_redis(moment: Moment) -> None:
    moment.site.redis.start()


def wipe_redis(moment: Moment) -> None:
    moment.strike()
    with _redis(moment) as client:
        client.flushall()


def freeze_redis(moment: Moment) -> None:
    moment.strike()
    pid = moment.site.redis.process.pid
    send([pid], signal.SIGSTOP)
    moment.undo.append(lambda: send([pid], signal.SIGCONT))


def fill_redis(moment: Moment) -> None:
    """Limit Redis to one byte of memory with ``noeviction``, so that it refuses every write."""
    moment.strike()
    with _redis(moment) as client:
        client.config_set("maxmemory", 1)

    def empty() -> None:
        with _redis(moment) as client:
            client.config_set("maxmemory", 0)

    moment.undo.append(empty)


def drop_redis_connections(moment: Moment) -> None:
    def drop() -> None:
        with _redis(moment) as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    moment.strike()
    _again_and_again(moment, drop, 0.1)


def _redis(moment: Moment) -> contextlib.closing[redis.Redis]:
    return contextlib.closing(redis.Redis(port=moment.site.redis.port, socket_timeout=5))


def _again_and_again(moment: Moment, call: Callable[[], None], every_seconds: float) -> None:
    """Repeat a call until the fault is healed."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_seconds):
            with contextlib.suppress(Exception):  # the server may be busy or restarting
                call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(10)

    moment.undo.append(end)


# ---- on the way -------------------------------------------------------------------------------


def spoil(
    which: str, mode: Mode, *, delay_seconds: float = 0.0, word: bytes = b""
) -> Callable[[Moment], None]:
    """Set the mode of the proxy in front of Redis or the database."""

    def inject(moment: Moment) -> None:
        proxy: TcpProxy | None = getattr(moment.site, f"{which}_proxy")
        if proxy is None:
            raise MomentError("the site has no such proxy")
        was = proxy.num_spoiled
        moment.strike()
        proxy.set(mode, delay_seconds=delay_seconds, word=word)

        def heal() -> None:
            proxy.set(Mode.PASS)
            if mode is not Mode.DELAY and proxy.num_spoiled == was:
                moment.failures.append("no connection used the proxy")

        moment.undo.append(heal)

    return inject


# ---- PostgreSQL -------------------------------------------------------------------------------


def stop_postgres(moment: Moment) -> None:
    moment.strike()
    moment.site.postgres.stop("immediate")
    moment.undo.append(moment.site.postgres.start)


def terminate_backends(moment: Moment) -> None:
    def terminate() -> None:
        _execute(
            moment,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
        )

    moment.strike()
    terminate()
    _again_and_again(moment, terminate, 0.3)


def freeze_postgres(moment: Moment) -> None:
    moment.strike()
    pids = moment.site.postgres.pids()
    send(pids, signal.SIGSTOP)
    moment.undo.append(lambda: send(pids, signal.SIGCONT))


def make_read_only(moment: Moment) -> None:
    """Make the server read-only, as after a failover that left the clients at the standby."""

    def switch(action: str) -> None:
        _execute(moment, f"ALTER SYSTEM {action}")
        _execute(moment, "SELECT pg_reload_conf()")

    moment.strike()
    switch("SET default_transaction_read_only = on")
    moment.undo.append(lambda: switch("RESET default_transaction_read_only"))


def _execute(moment: Moment, statement: str) -> None:
    options = {"options": "-c default_transaction_read_only=off", "connect_timeout": 5}
    engine = create_engine(
        moment.site.database_url, isolation_level="AUTOCOMMIT", connect_args=options
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


# ---- files --------------------------------------------------------------------------------------


def lock_sqlite(moment: Moment) -> None:
    """Hold the write lock in another program."""
    locker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LOCKER, str(moment.site.home / "textmill.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def release() -> None:
        locker.kill()
        locker.communicate()

    moment.undo.append(release)
    assert locker.stdout is not None
    if locker.stdout.readline() != b"locked\n":
        raise MomentError("the lock could not be acquired")
    moment.strike()


def fill_disk(moment: Moment) -> None:
    """Fill the database's disk completely."""
    filler = moment.site.small_disk / "filler"
    moment.strike()

    def grow() -> None:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    if file.write(b"\0" * size) < size:
                        break

    grow()
    _again_and_again(moment, grow, 0.2)  # space that the product frees is filled too

    def free() -> None:
        filler.unlink()
        postgres = moment.site.postgres
        if postgres is not None and not postgres.is_answering():
            postgres.stop()
            postgres.start()

    moment.undo.insert(0, free)  # after the filling thread has ended


def can_mount() -> bool:
    """Whether a disk can be mounted on this machine."""
    return os.geteuid() == 0 and sys.platform == "linux"


def faults() -> list[Fault]:
    """The faults of this module."""

    def fault(
        name: str,
        description: str,
        inject: Callable[[Moment], None],
        heal: Callable[[Moment], None] = undo_all,
        **options: Any,
    ) -> Fault:
        usual: dict[str, Any] = {"bounds": ANSWERED, "hold": (3.0, 6.0)}
        return Fault(name, description, inject, heal, **(usual | options))

    long: dict[str, Any] = {"hold": (30.0, 31.0), "jobs_per_second": 1.0}
    proxied: dict[str, Any] = {"site": "proxied"}
    lost_commit = spoil("database", Mode.LOSE_AFTER_WORD, word=b"COMMIT")
    return [
        fault("redis-killed", "Redis killed and restarted empty", kill_redis, start_redis),
        fault("redis-wiped", "Redis emptied (FLUSHALL)", wipe_redis, hold=(0.0, 1.0)),
        fault(
            "redis-frozen",
            "Redis frozen for 30 s",
            freeze_redis,
            quick_hold=(3.0, 4.0),
            **long,
        ),
        fault("redis-full", "Redis refuses writes (maxmemory, noeviction)", fill_redis),
        fault("redis-dropped", "connections to Redis dropped in a loop", drop_redis_connections),
        fault(
            "redis-slow",
            "a delay of 0.3 s to Redis and back",
            spoil("redis", Mode.DELAY, delay_seconds=0.3),
            **proxied,
        ),
        fault(
            "redis-hole",
            "nothing passes between the product and Redis",
            spoil("redis", Mode.HOLE),
            **proxied,
        ),
        fault(
            "redis-reset",
            "connections to Redis reset, also new ones",
            spoil("redis", Mode.RESET),
            **proxied,
        ),
        fault(
            "redis-replies-lost",
            "Redis receives the requests, its replies are lost",
            spoil("redis", Mode.LOSE_REPLIES),
            is_quick=True,
            quick_hold=(2.0, 3.0),
            **proxied,
        ),
        fault(
            "postgres-stopped",
            "PostgreSQL stopped immediately and restarted",
            stop_postgres,
            databases=POSTGRESQL,
            quick_hold=(2.0, 3.0),
        ),
        fault(
            "postgres-terminated",
            "PostgreSQL's connections ended in a loop",
            terminate_backends,
            databases=POSTGRESQL,
        ),
        fault(
            "postgres-frozen",
            "PostgreSQL frozen for 30 s",
            freeze_postgres,
            databases=POSTGRESQL,
            is_quick=True,
            quick_hold=(6.5, 7.5),
            **long,
        ),
        fault("postgres-read-only", "PostgreSQL read-only", make_read_only, databases=POSTGRESQL),
        fault(
            "postgres-hole",
            "nothing passes between the product and PostgreSQL",
            spoil("database", Mode.HOLE),
            databases=POSTGRESQL,
            hold=(10.0, 20.0),
            **proxied,
        ),
        fault(
            "postgres-reset",
            "connections to PostgreSQL reset, also new ones",
            spoil("database", Mode.RESET),
            databases=POSTGRESQL,
            **proxied,
        ),
        fault(
            "postgres-commit-lost",
            "PostgreSQL commits, the reply is lost",
            lost_commit,
            databases=POSTGRESQL,
            hold=(1.0, 3.0),
            **proxied,
        ),
        fault(
            "sqlite-locked",
            "the SQLite file locked by another program for 30 s",
            lock_sqlite,
            databases=("sqlite",),
            is_quick=True,
            quick_hold=(6.5, 7.5),
            **long,
        ),
        fault("disk-full", "no space on the database's disk", fill_disk, site="small-disk"),
    ]
