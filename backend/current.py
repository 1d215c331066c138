"""The services and the principal of the current request."""

from __future__ import annotations

from flask import current_app, g

from textmill.backend.access.control import EXTENSION as ACCESS
from textmill.backend.access.control import AccessControl
from textmill.backend.services.container import Services
from textmill.core.access.principals import NOBODY, Principal

EXTENSION = "textmill"  # key in ``app.extensions``


def services() -> Services:
    """Return the services, restricted to what the current principal may see and change."""
    found: Services | None = g.get("services")
    if found is None:
        unrestricted: Services = current_app.extensions[EXTENSION]
        found = g.services = unrestricted.seen_by(principal())
    return found


def principal() -> Principal:
    """Return who sent the current request."""
    found: Principal = g.get("principal", NOBODY)
    return found


def access() -> AccessControl:
    """Return the rules of the current application."""
    found: AccessControl = current_app.extensions[ACCESS]
    return found
