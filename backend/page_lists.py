"""The pages that list and compare."""

from __future__ import annotations

from flask import Blueprint


def register(pages: Blueprint) -> None:
    """Add the routes to the pages' blueprint."""
