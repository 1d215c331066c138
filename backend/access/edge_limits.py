"""Limits of requests by address, in the modes demo and team.

They protect what costs something without storing anything: reading, tokenizing, guessing keys. The
counters are in the instance's Redis, and in memory without it. Flask-Limiter counts.
"""

from __future__ import annotations

import hashlib
import math
import time

from flask import Flask, request
from flask_limiter import Limiter

from textmill.backend.server.limits import visitor_of
from textmill.core.settings import Settings

EXTENSION = "textmill_edge"
# Requests of one address in a minute, besides the limit of all of them together.
BY_ENDPOINT = {
    "api.jobs.submit": 60,
    "api.runs.submit": 60,
    "openai.completions.create": 60,
    "openai.chat.create": 60,
    "openai.responses.create": 60,
    "openai_helpers.tokenize": 240,
    "openai_helpers.detokenize": 240,
    "pages.generate.generate": 60,
    "pages.job.again": 60,
    "pages.run.run_again": 60,
    "api.models.tokenize": 240,  # the page asks while a visitor types
    "pages.sign_in.sign_in": 10,
    "pages.sign_in.begin_single_sign_on": 30,  # a team behind one address signs in the morning
    "pages.sign_in.finish_single_sign_on": 30,
    "pages.sign_in.forget_me": 10,
    "api.jobs.export": 10,
}
UNCOUNTED = frozenset({"static", "health.alive", "health.ready", "health.metrics"})
_REDIS_OPTIONS: dict[str, str | int] = {"socket_connect_timeout": 1, "socket_timeout": 1}


def add_edge_limits(app: Flask, settings: Settings) -> None:
    """Count the requests of an application, and refuse too many with 429."""
    if not settings.is_open or not settings.requests_per_minute:
        return
    in_redis = settings.redis_url is not None
    limiter = Limiter(
        _address,
        app=app,
        application_limits=[f"{settings.requests_per_minute} per minute"],
        application_limits_exempt_when=_is_uncounted,
        default_limits=[_own_limit],
        default_limits_exempt_when=_has_no_limit_of_its_own,
        storage_uri=_storage(settings.redis_url),
        storage_options=_REDIS_OPTIONS if in_redis else {},
        in_memory_fallback_enabled=in_redis,
        strategy="fixed-window",
        key_prefix="textmill-edge",
        headers_enabled=False,  # the fields of the IETF's draft tell the budgets instead
    )
    app.extensions[EXTENSION] = limiter


def retry_seconds(limiter: Limiter) -> int:
    """Until the window of the limit that was just exceeded ends, at least 1 s."""
    exceeded = limiter.current_limit
    return 1 if exceeded is None else max(1, math.ceil(exceeded.reset_at - time.time()))


def _address() -> str:
    """A hash of the client's address; of its network, for IPv6."""
    address = visitor_of(request.remote_addr or "").encode()
    return hashlib.sha256(address).hexdigest()[:32]


def _own_limit() -> str:
    # Flask-Limiter also asks for the limit of exempt requests, and does not use it.
    return f"{BY_ENDPOINT.get(str(request.endpoint), 1)} per minute"


def _has_no_limit_of_its_own() -> bool:
    return request.endpoint not in BY_ENDPOINT


def _is_uncounted() -> bool:
    return request.endpoint in UNCOUNTED


def _storage(redis_url: str | None) -> str:
    if redis_url is None:
        return "memory://"
    return redis_url.replace("unix://", "redis+unix://", 1)
