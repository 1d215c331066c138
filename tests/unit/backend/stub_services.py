"""Arranges the methods of a stub as the services that the pages call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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

    return SimpleNamespace(
        **{
            service: SimpleNamespace(**{method: bound(name) for method, name in methods.items()})
            for service, methods in METHODS.items()
        }
    )
