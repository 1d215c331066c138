"""Arranges the methods of a stub as the services that the pages call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flask import Flask

from textmill.backend.app import add_access
from textmill.backend.current import EXTENSION
from textmill.core.access.keys import KeyStore
from textmill.core.access.users import UserStore
from textmill.core.database.connections import make_engine
from textmill.core.settings import Settings

METHODS = {
    "submission": {"submit_job": "submit_job", "submit_run": "submit_run"},
    "jobs": {
        "read": "get_job",
        "cancel": "cancel_job",
        "delete": "delete_job",
        "page": "list_jobs",
    },
    "runs": {"read": "get_run"},
    "models": {"all": "list_models", "default_name": "default_model"},
    "queue": {"state": "queue", "has_workers": "has_workers"},
}


def as_services(stub: Any) -> Any:
    """Return services that call the stub; a method is looked up when it is called."""

    def bound(name: str) -> Any:
        return lambda *args, **options: getattr(stub, name)(*args, **options)

    services = SimpleNamespace(
        **{
            service: SimpleNamespace(**{method: bound(name) for method, name in methods.items()})
            for service, methods in METHODS.items()
        }
    )
    services.submission.quotas = ()
    services.sharing = SimpleNamespace(link_of=lambda _: None)
    services.seen_by = lambda _: services
    return services


def install(app: Flask, stub: Any) -> None:
    """Give an application these services, and the rules of the mode ``local``."""
    app.extensions[EXTENSION] = as_services(stub)
    engine = make_engine("sqlite:///:memory:")
    add_access(app, Settings(), KeyStore(engine), UserStore(engine))
