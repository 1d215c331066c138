"""The marker of tests that load the default model."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker for these tests, whichever file configures pytest."""
    config.addinivalue_line("markers", "real_model: loads the default model; tens of seconds")
