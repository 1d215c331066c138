"""The services of the application that handles the current request."""

from __future__ import annotations

from flask import current_app

from textmill.backend.services.container import Services

EXTENSION = "textmill"  # key in ``app.extensions``


def services() -> Services:
    """Return the services of the current application."""
    found: Services = current_app.extensions[EXTENSION]
    return found
