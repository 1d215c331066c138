"""Requests to the provider of the single sign-on: bounded in time and size, without redirects.

The only module that sends them. Importing it needs the extra ``oidc``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar
from urllib.parse import urlsplit

from authlib.integrations.requests_client import OAuth2Session
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter

from textmill.backend.access.sign_in_errors import ProviderUnusable
from textmill.core.setting_values import can_carry_secrets, is_loopback

STEP_SECONDS = 5.0  # of all requests that one click makes
MAX_STEPS = 8  # at once, of 32 threads for requests: a provider that hangs does not stop the pages
MAX_ANSWER_BYTES = 1 << 20  # the longest answer, the keys of a large provider, has a few KiB
_CHUNK_BYTES = 1 << 14
Result = TypeVar("Result")


class Steps:
    """Runs steps of sign-ins on threads of their own, so that their time is bounded.

    The time limits of a socket bound each of its reads, not their number.
    """

    def __init__(self, seconds: float = STEP_SECONDS) -> None:
        self._seconds = seconds
        self._places = threading.BoundedSemaphore(MAX_STEPS)

    def run(self, step: Callable[[float], Result]) -> Result:
        """The result of a step, which gets the instant of ``time.monotonic`` at which it ends.

        Raises:
            ProviderUnusable: it took too long, or too many steps run already.
        """
        if not self._places.acquire(blocking=False):
            raise ProviderUnusable("too many sign-ins wait for the provider")
        future: Future[Result] = Future()
        threading.Thread(target=self._run, args=(step, future), name="oidc", daemon=True).start()
        try:
            return future.result(self._seconds)
        except FutureTimeoutError:
            raise ProviderUnusable(f"no answer within {self._seconds:g} s") from None

    def _run(self, step: Callable[[float], Result], future: Future[Result]) -> None:
        try:
            future.set_result(step(time.monotonic() + self._seconds))
        except BaseException as error:
            future.set_exception(error)
        finally:
            self._places.release()


class _BoundedAdapter(HTTPAdapter):
    """Sends requests until an instant, and refuses redirects and long answers."""

    def __init__(self, until: float) -> None:
        super().__init__(max_retries=0)
        self._until = until

    def send(self, request: PreparedRequest, *_: Any, **options: Any) -> Response:
        if not can_carry_secrets(str(request.url)):
            raise ProviderUnusable("an address of the provider does not begin with https")
        options |= {"stream": True, "timeout": self._left()}
        response = super().send(request, **options)
        if response.is_redirect or 300 <= response.status_code < 400:
            response.close()
            raise ProviderUnusable(f"{_place(request)} redirects, which is not followed")
        content = b""
        for chunk in response.iter_content(_CHUNK_BYTES):
            content += chunk
            self._left()
            if len(content) > MAX_ANSWER_BYTES:
                response.close()
                raise ProviderUnusable(f"{_place(request)} answers with too many bytes")
        response._content = content  # where requests keeps what it has read
        return response

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise ProviderUnusable("no answer in time")
        return left


def provider_session(until: float, issuer: str, **options: Any) -> OAuth2Session:
    """A session for the requests of one step; it keeps no cookie for the next one.

    Args:
        until: the instant of ``time.monotonic`` at which the step ends.
        issuer: of the provider; a loopback one is asked without the proxies of the environment.
        options: the client, as Authlib names its properties.
    """
    session = OAuth2Session(**options)
    session.trust_env = not is_loopback(urlsplit(issuer).hostname or "")
    for scheme in ("http://", "https://"):
        session.mount(scheme, _BoundedAdapter(until))
    return session


def _place(request: PreparedRequest) -> str:
    """Where a request goes, without its query."""
    parts = urlsplit(str(request.url))
    return f"{parts.netloc}{parts.path}"
