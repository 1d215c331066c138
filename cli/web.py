"""``textmill web``: gunicorn around ``backend.wsgi``, configured here and nowhere else.

One process with many threads: an event stream holds a thread for as long as somebody watches, and
with 64 of them 40 open streams left pages at 1.4 ms. More web processes are more containers.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from gunicorn.app.base import BaseApplication

from cli.addresses import bracketed
from cli.leash import bind_to_parent
from core.settings import Settings

_NUM_THREADS = 64
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - gunicorn makes an unpredictable name in it
_OPTIONS: dict[str, Any] = {
    "workers": 1,
    "worker_class": "gthread",
    "threads": _NUM_THREADS,
    "graceful_timeout": 5,  # open streams end with the server; clients resume by event id
    "timeout": 60,
    "keepalive": 15,
    "accesslog": None,  # the application logs its requests itself, with their ids
    "errorlog": "-",
    "control_socket_disable": True,  # it would be made in the user's home folder
}


def serve(settings: Settings) -> None:
    """Serve until a signal; does not return."""
    _Server(settings).run()


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn; its own command line and environment are not read."""
        for name, value in _OPTIONS.items():
            self.cfg.set(name, value)
        self.cfg.set("bind", f"{bracketed(self._settings.host)}:{self._settings.port}")
        self.cfg.set("loglevel", self._settings.log_level)
        self.cfg.set("post_fork", _after_fork)
        if os.access(_SHARED_MEMORY, os.W_OK):  # a heartbeat file on a busy disk can block
            self.cfg.set("worker_tmp_dir", _SHARED_MEMORY)

    def load(self) -> Any:
        """Called by gunicorn in the process that serves, so that nothing is shared over a fork."""
        from backend.wsgi import create

        return create()


def _after_fork(_server: object, _worker: object) -> None:
    bind_to_parent(signal.SIGKILL)
