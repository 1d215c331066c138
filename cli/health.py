"""``python -m textmill.cli.health URL``: status 0 when the URL answers 200.

The health check of the containers. It uses the standard library only, so that a check every few
seconds costs almost nothing (httpx2 alone takes 60 ms to import).
"""

from __future__ import annotations

import sys
import urllib.request

_ANSWER_SECONDS = 3.0


def is_healthy(url: str) -> bool:
    """Whether ``GET url`` answers 200 in time."""
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310 - ours
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_healthy(sys.argv[1]) else 1)
