"""What gunicorn loads."""

from __future__ import annotations

import os

from flask import Flask

from backend.app import create_app
from core.logs import configure_logs
from core.settings import Settings


def create() -> Flask:
    """The application as the environment's settings have it."""
    settings = Settings.from_environment(os.environ)
    configure_logs(settings)
    return create_app(settings)
